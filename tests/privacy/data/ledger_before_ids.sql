BEGIN TRANSACTION;
CREATE TABLE ledger (
    seq INTEGER PRIMARY KEY,
    charge_id TEXT UNIQUE,
    record TEXT NOT NULL,
    payload BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT
;
INSERT INTO "ledger" VALUES(0,NULL,'{"at":1.0,"body":{"accounting":"gaussian_dp","federation_id":"ledger","format":1,"gossip_share":0.25,"neighbours":"replace-one client","total_delta":1e-05,"total_epsilon":10.0},"charge_id":null,"epoch":0,"kind":"genesis","seq":0}',X'',X'A7110B4E5846E596A24EFF59B079C8416D8EF7C108FF25157C85E67F19381A5E');
INSERT INTO "ledger" VALUES(1,NULL,'{"at":1.0,"body":{"pid":13070},"charge_id":null,"epoch":1,"kind":"writer","seq":1}',X'',X'6A9523789152B2AA0782358BB72FE3D85BF6D53EABA8FC9EB4695AC584409211');
INSERT INTO "ledger" VALUES(2,'r0','{"at":3.0,"body":{"details":{"sigma":5.0},"epsilon_spent":0.7255217508592534,"mu":0.2},"charge_id":"r0","epoch":1,"kind":"release","seq":2}',X'',X'A33DFE82274464855A986F116FFE36FBFC31E85BCD020155C135A869F345490F');
INSERT INTO "ledger" VALUES(3,'g0','{"at":3.0,"body":{"asked":2,"charged":2,"details":{"round":1},"mu":0.1},"charge_id":"g0","epoch":1,"kind":"gossip","seq":3}',X'420100000000000000035B2261222C202262225D',X'6DEF6861C7D41E968AB197E3E54E29E66FE19AACD0436C244AFB2DB932FB51F1');
INSERT INTO "ledger" VALUES(4,NULL,'{"at":4.0,"body":{"operator":"ann","total_delta":1e-05,"total_epsilon":12.0},"charge_id":null,"epoch":1,"kind":"renewal","seq":4}',X'',X'96D1C20972AA1F4D56B2890317169A074B29AABF04FF007961B4CE99C10A6C2E');
INSERT INTO "ledger" VALUES(5,'r1','{"at":5.0,"body":{"details":{"sigma":5.0},"epsilon_spent":1.131774896643168,"mu":0.3},"charge_id":"r1","epoch":1,"kind":"release","seq":5}',X'',X'0F1EE8702BF69BB4FFE303D7DC169E39253AAB762C7F1E8A41EB454D9FFF974E');
COMMIT;

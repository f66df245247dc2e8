"""Flower's half of ``python -m benchmarks gateway --flower PYTHON``, run by the peer's Python: not by ours.

``PYTHON _flower_superlink.py serve CERTIFICATE KEY PORT DATABASE`` is what ``flower-superlink`` serves over
TLS (``create_app`` under uvicorn, one worker, as its command does), with one run that is under way. A line
of standard input, a number, gives each node so many instructions to reply to. ``DATABASE`` is ``memory``,
its default, or a file (SQLite).

``PYTHON _flower_superlink.py push AUTHORITY PORT DIMENSION CLIENTS`` is so many SuperNodes by Flower's Fleet
API over a kept connection each: each line of standard input, a number, has each pull so many instructions
and then send as many replies of one float32 array, as a SuperNode does: the message, then each of its
objects that the SuperLink lacks. Messages, their bytes and signatures are made before the clock starts. It
answers a line of JSON: seconds, and requests of one reply.
"""

from __future__ import annotations

import http.client
import json
import logging
import ssl
import sys
import threading
import time
from base64 import b64encode
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
)
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE


def serve(certificate: str, key: str, port: int, database: str) -> None:
    import uvicorn  # type: ignore[import-not-found]
    from flwr.common.constant import ISOLATION_MODE_PROCESS
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    place = FLWR_IN_MEMORY_DB_NAME if database == "memory" else database
    config = SuperLinkLifespanConfig(
        control_address="127.0.0.1:0", health_server_address=None, host="127.0.0.1", port=port,
        insecure=False, certificates=None, superexec_auth_secret=None,
        authn_plugin=load_control_authn_plugin(), event_log_plugin=None, fleet_event_log_plugin=None,
        enable_event_log=False, artifact_provider=None,
        enable_supernode_auth=False, fleet_api_type="grpc-rere", fleet_api_address=None, simulation=False,
        ssl_ca_certfile=None, ssl_certfile=certificate, ssl_keyfile=key, database=place,
        isolation=ISOLATION_MODE_PROCESS, runtime_dependency_install=False,
    )  # fmt: skip
    app = create_app(config, SuperLinkLifespan)
    state = app.state.linkstate_factory.state()
    run_id = state.create_run(
        "bench/app", "1.0.0", "0" * 64, {}, NOOP_FEDERATION_ID, None, "<id:none>", TaskType.SERVER_APP
    )
    task_id = state.get_run_info(run_ids=[run_id])[0].primary_task_id
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, task_id, state.get_node_id()
    state.claim_task(task_id)
    state.activate_task(task_id)

    def instruct() -> None:
        for line in sys.stdin:
            for node_id in state.get_nodes(run_id):
                for number in range(int(line)):
                    content = RecordDict({"config": ConfigRecord({"number": number, "at": time.time()})})
                    message = Message(content, node_id, "train")
                    message.metadata.__dict__["_message_id"] = message.object_id
                    bare = remove_content_from_message(message)
                    session = state.start_session(run_id)
                    _, missing = state.store_message_and_object_tree(bare, get_object_tree(message), session)
                    objects = get_all_nested_objects(message)
                    for object_id in missing:
                        state.store_object(run_id, session, object_id, objects[object_id].deflate())
            print(json.dumps({"instructions": state.num_message_ins()}), flush=True)

    def beat() -> None:
        """A run whose server app is silent is ended."""
        while state.acknowledge_task_heartbeat(task_id):
            time.sleep(10.0)

    for work in (instruct, beat):
        threading.Thread(target=work, daemon=True).start()
    uvicorn.run(
        app=app, host="127.0.0.1", port=port, access_log=False, log_level="warning", ssl_keyfile=key,
        ssl_certfile=certificate, workers=1,
    )  # fmt: skip


class SuperNode:
    """One node, registered and activated."""

    def __init__(self, authority: str, port: int) -> None:
        context = ssl.create_default_context(cafile=authority)
        self.connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=300)
        self.private, public = generate_key_pairs()
        self.public = public_key_to_bytes(public)
        self.post("register-node", RegisterNodeFleetRequest(public_key=self.public).SerializeToString())
        asked = ActivateNodeRequest(public_key=self.public, heartbeat_interval=600.0)
        answer = ActivateNodeResponse.FromString(self.post("activate-node", asked.SerializeToString()))
        self.node = Node(node_id=answer.node_id)
        self.replies: list[tuple[bytes, dict[str, bytes]]] = []
        self.turns = 0

    def headers(self) -> dict[str, str]:
        """A signed time, which is good for many requests."""
        told = now().isoformat()
        return {
            "Content-Type": PROTOBUF_MEDIA_TYPE,
            "Accept": PROTOBUF_MEDIA_TYPE,
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public).decode(),
            TIMESTAMP_HEADER: told,
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(self.private, told.encode())).decode(),
        }

    def connect(self) -> None:
        """Anew: uvicorn closes a connection that was idle for 5 seconds."""
        self.connection.close()
        self.connection.connect()

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
        self.connection.request("POST", f"/v1/fleet/{path}", body, headers or self.headers())
        reply = self.connection.getresponse()
        answer = reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{path}: {reply.status} {answer[:300]!r}")
        return answer

    def prepare(self, count: int, dimension: int, number: int) -> None:
        """Pull so many instructions, and make the replies to them."""
        self.connect()
        self.replies.clear()
        self.turns += 1
        row = np.full(dimension, 1e-4, np.float32)
        for turn in range(count):
            pulled = PullMessagesResponse.FromString(
                self.post("pull-messages", PullMessagesRequest(node=self.node).SerializeToString())
            )
            asked = message_from_proto(pulled.messages_list[0])
            row[0], row[1] = turn + 1, number  # an object that the SuperLink has is not sent
            row[2] = self.turns
            content = RecordDict(
                {
                    "arrays": ArrayRecord({"w": Array(row)}),
                    "metrics": MetricRecord({"num-examples": 1}),
                }
            )
            reply = Message(content, reply_to=asked)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            head = PushMessagesRequest(
                node=self.node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            ).SerializeToString()
            objects = {
                object_id: PushObjectRequest(
                    node=self.node,
                    run_id=reply.metadata.run_id,
                    object_id=object_id,
                    object_content=one.deflate(),
                ).SerializeToString()
                for object_id, one in get_all_nested_objects(reply).items()
            }
            self.replies.append((head, objects))

    def send(self) -> int:
        """Send all replies; the number of requests."""
        headers, requests = self.headers(), 0
        for head, objects in self.replies:
            told = PushMessagesResponse.FromString(self.post("push-messages", head, headers))
            # A field that is appended to a message's bytes is a field of it.
            session = PushObjectRequest(session_id=told.session_id).SerializeToString()
            for object_id in told.objects_to_push:
                self.post("push-object", objects[object_id] + session, headers)
            requests += 1 + len(told.objects_to_push)
        return requests


def push(authority: str, port: int, dimension: int, clients: int) -> None:
    nodes = [SuperNode(authority, port) for _ in range(clients)]
    print(json.dumps({"nodes": len(nodes)}), flush=True)
    for line in sys.stdin:
        for number, node in enumerate(nodes):
            node.prepare(int(line), dimension, number)
        ready, failed, counts = threading.Barrier(clients + 1), list[str](), list[int]()

        def work(node: SuperNode, ready: Any = ready, failed: Any = failed, counts: Any = counts) -> None:
            node.connect()
            ready.wait()
            try:
                counts.append(node.send())
            except Exception as error:
                failed.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=(node,)) for node in nodes]
        for thread in threads:
            thread.start()
        ready.wait()
        begun = time.perf_counter()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
        if failed:
            raise SystemExit(failed[0])
        print(json.dumps({"seconds": seconds, "requests": sum(counts) / (int(line) * clients)}), flush=True)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
    else:
        push(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))

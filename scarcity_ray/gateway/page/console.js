"use strict";
// The console. All that comes from the gateway is written as text (textContent): sites choose their own names.

const EVERY_SECONDS = 5;
const FEW = 50;
const SITE_STATES = {
  up: ["up", "ok"], stale: ["not heard of lately", "warn"], never_seen: ["never heard of", "soft"],
  left_out: ["left out: its own ceiling is reached", "bad"], revoked: ["certificate revoked", "bad"],
};
const STATES = {
  no_sites: ["No sites yet", "soft"], open: ["Open", "ok"], waiting: ["Between rounds", "ok"], paused: ["Paused", "warn"],
  finished: ["Finished", "soft"], budget_spent: ["Budget spent", "bad"], stopped: ["Stopped", "bad"],
};
const REASONS = {
  unknown_client: "the site is not registered", wrong_shape: "it does not have as many numbers as the model",
  not_finite: "it holds infinite or missing numbers", not_numeric: "it holds no numbers",
  future_round: "it is for a round that has not begun", too_stale: "it is too late for its round",
  replayed: "the same update came before", sequence_used: "another update with its number came before",
  participation_cap: "the site had sent as often as it may", bad_signature: "the site's signature does not match",
  read_only: "nothing was accepted any more: the budget was spent", too_few_persons: "it stands for too few persons",
  at_ceiling: "the site has reached its own privacy ceiling", not_stored: "it could not be written to disk; send it again",
  budget_spent: "the site's privacy budget has no room for it", busy: "too much waited for its aggregate; send it again",
};

// Height as well as colour tells them apart: whole, lower half, whole, a line.
const SHAPES = { "+": "0h8v10h-8", "-": "5h8v5h-8", o: "0h8v10h-8", ".": "8h8v2h-8" };

const byId = (id) => document.getElementById(id);
let told = null, toldAt = 0, showAll = false, timer = 0;

function make(tag, text, kind) {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = String(text);
  if (kind) node.className = kind;
  return node;
}

function drawn(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "unlimited";
  return Number(value).toLocaleString("en", { maximumSignificantDigits: digits });
}

function whole(value) { return value === null || value === undefined ? "unlimited" : Number(value).toLocaleString("en"); }

function bytes(value) {
  if (value === null || value === undefined) return "not measured";
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let place = 0, left = Number(value);
  while (left >= 1000 && place < units.length - 1) { left /= 1000; place += 1; }
  return `${left.toLocaleString("en", { maximumSignificantDigits: 3 })} ${units[place]}`;
}

function seconds(value) {
  return value === null || value === undefined ? "not measured" : `${number(value)} s`;
}

function ago(then, now) {
  if (then === null || then === undefined) return "never";
  const gone = Math.max(0, now - then);
  for (const [size, unit] of [[86400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (gone >= size) {
      const count = Math.floor(gone / size);
      return `${count} ${unit}${count === 1 ? "" : "s"} ago`;
    }
  }
  return `${Math.floor(gone)} s ago`;
}

function plural(count, one, many) { return `${whole(count)} ${count === 1 ? one : many}`; }

function fill(table, head, rows, empty) {
  table.replaceChildren();
  if (!rows.length) {
    const row = make("tr"), cell = make("td", empty, "soft");
    row.append(cell);
    table.append(row);
    return;
  }
  const top = make("tr");
  for (const [name, kind] of head) top.append(make("th", name, kind));
  const body = make("tbody");
  for (const cells of rows) {
    const row = make("tr");
    cells.forEach((cell, place) => {
      const kind = head[place][1];
      if (cell instanceof Node) {
        const held = make("td", null, kind);
        held.append(cell);
        row.append(held);
      } else row.append(make("td", cell, kind));
      row.lastChild.dataset.label = head[place][0];
    });
    body.append(row);
  }
  const above = make("thead");
  above.append(top);
  table.append(above, body);
}

function strip(marks, words) {
  // One path for each kind of mark, the newest at the right of 100 places.
  const kinds = { "+": "ok", "-": "bad", "o": "far", ".": "none" }, count = Math.max(marks.length, 20);
  const picture = drawn("svg", { class: "strip", viewBox: `0 0 ${count * 10} 10`, preserveAspectRatio: "none", role: "img" });
  const title = drawn("title", {});
  title.textContent = words;
  picture.append(title);
  const shift = count - marks.length;
  for (const [mark, kind] of Object.entries(kinds)) {
    let path = "";
    for (let place = 0; place < marks.length; place += 1) {
      if (marks[place] === mark) path += `M${(shift + place) * 10} ${SHAPES[mark]}z`;
    }
    if (path) picture.append(drawn("path", { d: path, class: kind }));
  }
  return picture;
}

function counted(marks) {
  const of = (mark) => marks.split(mark).length - 1;
  const parts = [`${of("+") + of("o")} counted`, `${of("-")} refused`, `${of(".")} without an update`];
  return `of the last ${marks.length} rounds: ${parts.join(", ")}`;
}

function trend(values) {
  const known = values.filter((value) => Number.isFinite(value));
  const low = Math.min(...known), high = Math.max(...known), wide = Math.max(1, values.length - 1);
  const picture = drawn("svg", { class: "trend", viewBox: "0 0 100 20", preserveAspectRatio: "none", role: "img" });
  const points = values.map((value, place) => {
    const up = high > low ? (value - low) / (high - low) : 0.5;
    return `${((place / wide) * 100).toFixed(1)} ${(18 - up * 16).toFixed(1)}`;
  });
  if (points.length > 1) picture.append(drawn("path", { d: `M${points.join("L")}`, class: "line" }));
  return picture;
}

function bar(share, small) {
  const outer = make("div", null, small ? "bar small" : "bar"), inner = make("i");
  inner.style.width = `${Math.min(100, Math.max(0, share * 100))}%`;
  outer.append(inner);
  return outer;
}

function list(node, entries, empty) {
  node.replaceChildren();
  for (const entry of entries) node.append(make("li", entry));
  if (!entries.length) node.append(make("li", empty, "soft"));
}

function showTop(status) {
  const [word, kind] = STATES[status.state] || [status.state, "soft"], name = status.federation.name || "Federation";
  document.title = `${name}: ${word}`;
  byId("name").textContent = name;
  byId("sentence").replaceChildren(make("span", word, `state ${kind}`), status.sentence);
  byId("who").textContent = `${status.operator.name}, ${status.operator.role === "operate" ? "may operate" : "may read"}`;
  const states = status.sites.by_state, budget = status.budget;
  const listed = Object.values(states).reduce((sum, count) => sum + count, 0);
  const entries = [
    [whole(status.round.number), "round"],
    [`${status.round.baskets_ready} of ${status.round.baskets_wanted}`, "baskets are ready"],
    [`${whole(states.up)} of ${whole(listed)}`, "sites are up"],
    [whole(budget.rounds_left), "rounds left in the budget"],
    [number(budget.epsilon_left), "epsilon left"],
    [number(budget.next_release_epsilon), "epsilon for the next release"],
  ];
  byId("tiles").replaceChildren(...entries.map(([figure, meaning]) => {
    const tile = make("div", null, "tile");
    tile.append(make("b", figure), make("span", meaning));
    return tile;
  }));
}

function showActs(status) {
  byId("acts").hidden = status.operator.role !== "operate";
  byId("acts").querySelector('[data-act="pause"]').disabled = !["open", "waiting"].includes(status.state);
  byId("acts").querySelector('[data-act="resume"]').disabled = status.state !== "paused";
}

function showRound(status) {
  const now = status.round, left = now.closes_in_seconds;
  const closes = left === null ? "" : ` The round closes in ${Math.max(0, Math.round(left))} s.`;
  byId("round").textContent = `Round ${whole(now.number)}: ${now.headline}.${closes}`;
  byId("round-text").textContent = now.text;
  const rows = now.baskets.map((basket) => {
    const named = basket.absent.join(", "), more = basket.num_absent - basket.absent.length;
    return [basket.id, `${whole(basket.sent)} of ${whole(basket.sites)}`, basket.is_ready ? make("span", "ready", "ok") : make("span", "not yet"),
      basket.is_ready ? "" : named + (more > 0 ? ` and ${whole(more)} more` : "")];
  });
  fill(byId("baskets"), [["basket", "id"], ["sites that have sent", "said"], ["combined", "said"], ["not heard of in this round", "id"]], rows,
    status.sites.registered ? "No basket is waited for." : "No basket has a site yet.");
}

function showSites(status) {
  const wanted = byId("filter").value.trim().toLowerCase(), now = status.at, sites = status.sites;
  const found = sites.list.filter((site) => `${site.id} ${site.domain || ""}`.toLowerCase().includes(wanted));
  const rows = (showAll ? found : found.slice(0, FEW)).map((site) => {
    const [word, kind] = SITE_STATES[site.state] || [site.state, "soft"], days = site.certificate_days_left;
    let certificate = make("span", "", "soft");
    if (days !== null) {
      const passed = days < 0;
      certificate = make("span", passed ? "expired" : plural(days, "day", "days"), passed || days < 14 ? "bad" : "");
    }
    const ceiling = make("div");
    if (site.ceiling) {
      ceiling.append(make("span", `${number(site.ceiling.epsilon_left)} of ${number(site.ceiling.epsilon)} left`));
      ceiling.append(bar(site.ceiling.epsilon_left / site.ceiling.epsilon, true));
    } else ceiling.append(make("span", "none", "soft"));
    const past = site.strip ? strip(site.strip, counted(site.strip)) : make("span", "no round seen yet", "soft");
    return [site.id, site.domain || "", make("span", word, kind), ago(site.last_seen, now), certificate, ceiling, past];
  });
  const head = [["site", "id"], ["domain", "id"], ["state", ""], ["last seen", "said"], ["certificate", "said"],
    ["own ceiling", "said"], ["last rounds", ""]];
  fill(byId("sites"), head, rows, sites.list.length ? "No site is called so." : "No site is registered yet.");
  const parts = Object.entries(sites.by_state).filter(([, count]) => count)
    .map(([state, count]) => `${whole(count)} ${(SITE_STATES[state] || [state])[0]}`);
  const more = sites.unlisted ? `; ${whole(sites.unlisted)} more are registered and not listed here` : "";
  byId("by-state").textContent = parts.length ? `${parts.join(", ")}${more}.` : "";
  byId("more").hidden = showAll || found.length <= FEW;
  byId("more").textContent = `Show all ${whole(found.length)}`;
  byId("key-outlier").hidden = status.outliers === null;
}

function showBudget(status) {
  const budget = status.budget, node = byId("budget");
  node.replaceChildren();
  if (budget.epsilon_total === null) {
    node.append(make("p", "This federation has no finite budget: nothing is claimed about privacy."));
    return;
  }
  const used = budget.epsilon_total ? budget.epsilon_spent / budget.epsilon_total : 1;
  node.append(bar(budget.is_spent ? 1 : used));
  node.append(make("p", `Epsilon ${number(budget.epsilon_spent)} of ${number(budget.epsilon_total)} is spent, at delta `
    + `${number(budget.delta)}, for one ${budget.unit}, in budget period ${budget.period}. `
    + `Over all periods: ${number(budget.epsilon_lifetime)}.`));
  if (budget.is_spent) node.append(make("p", `The budget is spent: ${budget.reason}.`, "bad"));
  else node.append(make("p", `The next release raises it by ${number(budget.next_release_epsilon)}; `
    + (budget.rounds_left === null ? "there is no end of rounds." : `${plural(budget.rounds_left, "round is", "rounds are")} left.`)));
  const own = budget.ceilings;
  const reached = own.num_left_out ? `; left out of all further rounds, since they reached it: ${whole(own.num_left_out)}` : "";
  node.append(make("p", own.clients
    ? `${plural(own.clients, "site has a ceiling of its own", "sites have ceilings of their own")}${reached}.`
    : "No site has set a ceiling of its own."));
}

function showRefusals(status) {
  const rows = Object.entries(status.refusals).sort((a, b) => b[1] - a[1])
    .map(([reason, count]) => [reason.replaceAll("_", " "), REASONS[reason] || "", whole(count)]);
  fill(byId("refusals"), [["reason", "said"], ["what it means", ""], ["updates", "n"]], rows, "None was refused.");
}

function showOutliers(status) {
  const node = byId("outliers");
  node.replaceChildren();
  if (status.outliers === null) {
    node.append(make("p", "Not shown: this federation keeps its basket models to itself, and who is far from the others "
      + "would tell of single updates."));
    return;
  }
  const table = make("table"), held = make("div", null, "wide");
  const rows = status.outliers.sites.slice(0, FEW).map((site) => [site.id, strip(site.strip, `in ${site.count} rounds`), whole(site.count)]);
  fill(table, [["site", "id"], ["last rounds", ""], ["rounds", "n"]], rows, "None was far from the others.");
  held.append(table);
  node.append(held);
}

function showValidation(status) {
  const rows = [];
  for (const [domain, metrics] of Object.entries(status.validation.domains)) {
    for (const [name, found] of Object.entries(metrics)) {
      const last = found.values.length - 1;
      rows.push([domain, name.replaceAll("_", " "), trend(found.values), number(found.values[last], 4), whole(found.rounds[last])]);
    }
  }
  const head = [["domain", "id"], ["measure", ""], ["rounds", ""], ["newest", "n"], ["of round", "n"]];
  fill(byId("validation"), head, rows, "No site has measured the model yet.");
  const node = byId("private"), told = status.validation.private;
  node.replaceChildren();
  if (!told) return;
  const table = make("table"), held = make("div", null, "wide");
  fill(table, [["measured privately", ""], ["mean", "n"], ["standard error", "n"]],
    Object.entries(told.metrics).map(([name, found]) => [name.replaceAll("_", " "),
      found.mean === null ? "hidden by noise" : number(found.mean, 4),
      found.standard_error === null ? "" : number(found.standard_error, 2)]), "");
  held.append(table);
  node.append(make("p", `Of round ${told.round}, with noise and inside the privacy budget:`, "soft"), held);
}

function showWork(status) {
  const forecast = status.work.forecast, last = status.work.last_round, rows = [];
  const of = (record, name, shown) => (record ? shown(record[name]) : "");
  rows.push(["updates from the sites", of(last, "update_bytes", bytes), of(forecast, "update_bytes", bytes)]);
  rows.push(["secure sum between baskets", "", of(forecast, "secure_sum_bytes", bytes)]);
  rows.push(["the federation's own work", of(last, "own_seconds", seconds), of(forecast, "seconds_on_one_core", seconds)]);
  rows.push(["the whole round, with the sites' training", of(last, "seconds", seconds), ""]);
  for (const [phase, value] of Object.entries(last ? last.phases : {})) {
    rows.push([`of it: ${phase.replaceAll("_", " ")}`, seconds(value), ""]);
  }
  const gateway = status.gateway;
  if (gateway) {
    if (gateway.bytes_received !== undefined) rows.push(["received by this gateway since it started", bytes(gateway.bytes_received), ""]);
    if (gateway.bytes_sent !== undefined) rows.push(["sent by this gateway since it started", bytes(gateway.bytes_sent), ""]);
  }
  fill(byId("work"), [["", ""], ["last round", "n"], ["forecast", "n"]], forecast || last ? rows : [], "Nothing to forecast without sites.");
}

function showLedger(status) {
  const ledger = status.ledger, opened = Number(ledger.opened);
  const rows = [
    ["newest hash", make("code", ledger.head)], ["where it lies", make("code", ledger.path)],
    ["begun", new Date(ledger.created * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC"],
    ["opened", opened === 1 ? "once" : `${whole(opened)} times`], ["releases in this budget period", whole(ledger.releases_charged)],
    ["federation", make("code", status.federation.id)],
  ];
  fill(byId("ledger"), [["", "said"], ["", ""]], rows, "");
}

function showFaults(status) {
  const entries = [...status.faults.newest].reverse().concat(status.warnings);
  list(byId("faults"), entries, "None.");
}

function show(status) {
  told = status;
  toldAt = Date.now();
  byId("login").hidden = true;
  byId("console").hidden = false;
  byId("trouble").hidden = true;
  for (const part of [showTop, showActs, showRound, showSites, showBudget, showRefusals, showOutliers, showValidation, showWork,
    showLedger, showFaults]) part(status);
  tick();
}

function tick() {
  if (!told) return;
  const gone = Math.round((Date.now() - toldAt) / 1000);
  byId("updated").textContent = gone < 2 ? "Up to date." : `As it was ${gone} s ago.`;
}

function askToken(error) {
  told = null;
  document.title = "Federation console";
  byId("console").hidden = true;
  byId("login").hidden = false;
  byId("login-error").textContent = error || "";
  byId("token").focus();
}

async function ask(path, given) {
  const options = { credentials: "same-origin", headers: { "Scarcity-Console": "1" }, cache: "no-store" };
  if (given !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(given);
  }
  const answer = await fetch(path, options);
  let body = {};
  try { body = await answer.json(); } catch { body = {}; }
  return { status: answer.status, body };
}

async function refresh() {
  clearTimeout(timer);
  try {
    const { status, body } = await ask("v1/status");
    if (status === 200) show(body);
    else if (status === 401) askToken(told ? "You were logged out." : "");
    else trouble(body.message || `the gateway answers ${status}`);
  } catch { trouble("the gateway does not answer; what you see may be old"); }
  if (byId("login").hidden) timer = setTimeout(refresh, EVERY_SECONDS * 1000);
}

function trouble(words) {
  if (!told && byId("console").hidden) { askToken(words); return; }
  byId("trouble").textContent = `Trouble: ${words}.`;
  byId("trouble").hidden = false;
}

const QUESTIONS = {
  pause: { title: "Pause the rounds?", text: "The round that is open goes on to its end; no other begins until you resume.", yes: "Pause", fields: [] },
  resume: { title: "Resume the rounds?", text: "The next round opens at once.", yes: "Resume", fields: [] },
  renew: {
    title: "Renew the privacy budget?", yes: "Renew",
    text: "A new budget period begins. Those who took part before lose more privacy than the first budget promised; it is "
      + "recorded in the ledger under your name. Do it only if your agreement with the sites allows it.",
    fields: [["total_epsilon", "Epsilon of the new period", "number"], ["total_delta", "Delta of the new period", "number"]],
  },
  unregister: {
    title: "Remove a site?", text: "Its updates that were not used yet are withdrawn, and it takes part no more.", yes: "Remove",
    fields: [["client_id", "The site's name, exactly", "text"]],
  },
};

function begin(act) {
  const question = QUESTIONS[act], fields = [...question.fields];
  if (act === "renew" && told.federation.needs_operator_signature) fields.push(["signature", "Your signature over the renewal, in hexadecimal", "text"]);
  byId("ask-title").textContent = question.title;
  byId("ask-text").textContent = question.text;
  byId("ask-yes").textContent = question.yes;
  byId("ask-fields").replaceChildren(...fields.flatMap(([name, label, kind]) => {
    const above = make("label", label), field = make("input");
    above.htmlFor = field.id = `field-${name}`;
    field.name = name;
    field.type = kind;
    field.required = true;
    field.autocomplete = "off";
    if (kind === "number") { field.step = "any"; field.min = "0"; }
    return [above, field];
  }));
  const dialog = byId("ask");
  dialog.returnValue = "no";
  dialog.onclose = async () => {
    if (dialog.returnValue !== "yes") return;
    const given = {};
    for (const [name, , kind] of fields) {
      const value = byId(`field-${name}`).value;
      given[name] = kind === "number" ? Number(value) : value;
    }
    byId("act-told").textContent = "One moment …";
    try {
      const { status, body } = await ask(`v1/operate/${act}`, given);
      byId("act-told").textContent = status === 200 ? body.message || "Done." : body.message || `The gateway answers ${status}.`;
      byId("act-told").className = status === 200 ? "ok" : "bad";
    } catch { byId("act-told").textContent = "The gateway does not answer; see below whether it was done."; }
    refresh();
  };
  dialog.showModal();
}

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("token");
  try {
    const { status, body } = await ask("console/login", { token: field.value.trim() });
    field.value = "";
    if (status === 200) refresh();
    else askToken(status === 401 ? "This token is not known here." : body.message || `The gateway answers ${status}.`);
  } catch { askToken("The gateway does not answer."); }
});
byId("logout").addEventListener("click", async () => { await ask("console/logout", {}); askToken(""); });
byId("filter").addEventListener("input", () => { if (told) showSites(told); });
byId("more").addEventListener("click", () => { showAll = true; showSites(told); });
byId("acts").addEventListener("click", (event) => { if (event.target.dataset.act) begin(event.target.dataset.act); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && told) refresh(); });
setInterval(tick, 1000);
refresh();

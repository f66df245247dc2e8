"""The command's words and options; each command's work is imported when it is called.

Exit codes: 0 done, 1 failed, 2 bad usage or config, 3 privacy budget spent.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Literal

import click

from scarcity_ray.cli.exit_codes import ExitCode, exits, only_prints

CONFIG = click.argument("config", type=click.Path(dir_okay=False))
FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: one JSON object a line on standard output, nothing else.",
)
LEDGER = click.argument("path", type=click.Path(dir_okay=False, readable=False))
OVERRIDES = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Replace a value of the config, e.g. --set lab.attack.name=alie; may be repeated.",
)


def examples(*lines: str) -> str:
    """The end of a command's help: lines that can be typed as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@click.group(
    epilog=examples(
        "scarcity-ray init wards",
        "scarcity-ray doctor",
        "scarcity-ray run configs/quickstart.yaml --runtime local",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(version("scarcity-ray"), prog_name="scarcity-ray", message="%(prog)s %(version)s")
def main() -> None:
    """Federated learning on Ray among parties that do not trust each other.

    Exit codes: 0 done, 1 failed, 2 bad usage or config, 3 privacy budget spent.
    """


@main.command(
    epilog=examples(
        "scarcity-ray run job.yaml",
        "scarcity-ray run job.yaml --runtime local --rounds 3",
        "scarcity-ray run job.yaml --address HEAD:6379 --out runs/first",
        "scarcity-ray run --resume runs/hospitals-20261130-101500",
    ),
)
@click.argument("config", type=click.Path(dir_okay=False), required=False)
@click.option("--out", metavar="DIR", help="Write here; must be empty or new. [default: runs/<name>-<time>]")
@click.option("--resume", metavar="DIR", help="Go on with the run of this folder, in place of CONFIG.")
@click.option("--runtime", type=click.Choice(["ray", "local"]), help="local: all in this process, no Ray.")
@click.option(
    "--address", metavar="A", help="Address of a Ray cluster. [default: RAY_ADDRESS, else a new one]"
)
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds to make, whatever the config says.")
@OVERRIDES
@FORMAT
@exits
def run(
    runtime: str | None, address: str | None, rounds: int | None, overrides: tuple[str, ...], **given: Any
) -> ExitCode:
    """Train through a federation, as the file CONFIG says, and report; or go on with a run that stopped."""
    from scarcity_ray.cli.run import run_command

    options = {"run.runtime": runtime, "run.address": address, "training.rounds": rounds}
    shorthands = tuple(f"{path}={value}" for path, value in options.items() if value is not None)
    return run_command(overrides=(*overrides, *shorthands), **given)


@main.command(
    epilog=examples(
        "scarcity-ray serve job.yaml",
        "scarcity-ray serve job.yaml --runtime local --out runs/first",
        "scarcity-ray serve --resume runs/first",
    ),
)
@click.argument("config", type=click.Path(dir_okay=False), required=False)
@click.option("--out", metavar="DIR", help="Write here; must be empty or new. [default: runs/<name>-<time>]")
@click.option("--resume", metavar="DIR", help="Go on with the served run of this folder, in place of CONFIG.")
@click.option("--runtime", type=click.Choice(["ray", "local"]), help="local: all in this process, no Ray.")
@click.option(
    "--address", metavar="A", help="Address of a Ray cluster. [default: RAY_ADDRESS, else a new one]"
)
@click.option("--rounds", type=click.IntRange(min=1), help="Rounds to make, whatever the config says.")
@OVERRIDES
@FORMAT
@exits
def serve(
    runtime: str | None, address: str | None, rounds: int | None, overrides: tuple[str, ...], **given: Any
) -> ExitCode:
    """Serve the file CONFIG to sites outside the cluster, which train and send over HTTPS.

    Ctrl-C and SIGTERM finish a release under way; --resume goes on in the same round.
    """
    from scarcity_ray.cli.serve import serve_command

    options = {"run.runtime": runtime, "run.address": address, "training.rounds": rounds}
    shorthands = tuple(f"{path}={value}" for path, value in options.items() if value is not None)
    return serve_command(overrides=(*overrides, *shorthands), **given)


@main.command(
    epilog=examples(
        "scarcity-ray plan job.yaml",
        "scarcity-ray plan job.yaml --rounds 100",
        "scarcity-ray plan driver.yaml --clients 40 --baskets 4",
        "scarcity-ray plan job.yaml --scale --measure --cores 16",
        "scarcity-ray plan job.yaml --recommend --attackers 8 --clients-are mixed",
    ),
)
@CONFIG
@click.option("--rounds", type=click.IntRange(min=1), help="Solve for the noise that buys as many rounds.")
@click.option("--epsilon", type=float, metavar="E", help="Plan with this total epsilon, not the config's.")
@click.option("--clients", type=click.IntRange(min=1), metavar="N", help="Plan for so many clients.")
@click.option("--baskets", type=click.IntRange(min=1), metavar="B", help="Plan for so many baskets.")
@click.option("--measure", is_flag=True, help="Predict seconds by this machine's speed, probed in a moment.")
@click.option(
    "--scale", is_flag=True, help="Seconds and memory of a round, for few to many clients and nodes."
)
@click.option("--cores", type=click.IntRange(min=1), metavar="C", help="Of a node, for --scale. [default: 8]")
@click.option("--recommend", is_flag=True, help="Choose rule, clip norm and baskets, and say why.")
@click.option("--attackers", type=click.IntRange(min=0), metavar="F", help="Of all clients, for --recommend.")
@click.option(
    "--clients-are",
    "likeness",
    type=click.Choice(["alike", "mixed", "unlike"]),
    help="How honest clients' updates resemble each other, for --recommend. [default: mixed]",
)
@click.option(
    "--update-norm",
    type=click.FloatRange(min=0, min_open=True),
    metavar="C",
    help="Of an honest update, if known.",
)
@click.option("--back-doors", is_flag=True, help="Recommend only rules that hold off back doors.")
@OVERRIDES
@FORMAT
@only_prints
def plan(**given: Any) -> ExitCode:
    """Print every number that follows from the file CONFIG, before any budget is spent.

    CONFIG is a job's file, or a driver's own: the section federation alone, or its settings. Such a file
    names no clients: say how many there are, or the fewest that a release can be made of are assumed.
    """
    from scarcity_ray.cli.plan import plan_command

    return plan_command(**given)


@main.command(
    epilog=examples(
        "scarcity-ray doctor",
        "scarcity-ray doctor job.yaml --format json",
        "scarcity-ray doctor job.yaml --address HEAD:6379",
        "scarcity-ray doctor job.yaml --certificates certificates --port 8443",
    ),
)
@click.argument("config", type=click.Path(dir_okay=False), required=False)
@click.option("--address", metavar="A", help="Address of a Ray cluster that should answer.")
@click.option(
    "--certificates",
    metavar="DIR",
    help="Folder of a gateway's certificates and keys. [default: gateway.keys]",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), help="At which a gateway is to listen. [default: gateway.port]"
)
@OVERRIDES
@FORMAT
@only_prints
def doctor(**given: Any) -> ExitCode:
    """Say what on this machine would break a federation, with CONFIG also what would break that of the file.

    Looks at memory, versions, ports, clock, entropy, tokens and certificates; writes, and removes, a small
    file in each folder of CONFIG. Exit code 1 if something would break.
    """
    from scarcity_ray.cli.doctor import doctor_command

    return doctor_command(**given)


@main.command(
    epilog=examples(
        "scarcity-ray init wards",
        "scarcity-ray init wards --kind torch",
        "scarcity-ray init wards --persons",
        "scarcity-ray init wards --sites 2",
    ),
)
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["numpy", "sklearn", "torch"]),
    default="numpy",
    show_default=True,
    help="What the model is made with.",
)
@click.option(
    "--persons", is_flag=True, help="Protect each person of a client, not the client as a whole (numpy)."
)
@click.option(
    "--sites",
    type=click.IntRange(2, 99),
    help="Of so many hospitals that keep their data at home: a folder for each, and for the server.",
)
@exits
def init(name: str, kind: str, persons: bool, sites: int | None) -> ExitCode:
    """Make the folder NAME with a job that runs as it is, to put your own data and model in."""
    from scarcity_ray.cli.init import init_command

    return init_command(name, kind, persons, sites)


@main.command(
    epilog=examples(
        "scarcity-ray export runs/RUN/model.npz --to torch",
        "scarcity-ray export runs/RUN/best_model.npz --to numpy --out best.npz",
    ),
)
@click.argument("model", type=click.Path(dir_okay=False))
@click.option("--to", "framework", type=click.Choice(["torch", "numpy"]), required=True, help="For whom.")
@click.option(
    "--out", metavar="FILE", help="Write here; must be new. [default: MODEL's name, .pt or .arrays.npz]"
)
@exits
def export(model: str, framework: Literal["torch", "numpy"], out: str | None) -> ExitCode:
    """Write a run's model for a framework.

    torch: a state_dict for torch.load(FILE, weights_only=True). numpy: an .npz with each part by its name.
    A model of scikit-learn needs no export: load_model(MODEL, like=an initialised estimator) reads it.
    """
    from scarcity_ray.cli.export import export_command

    return export_command(model, framework, out)


@main.group(
    epilog=examples(
        "scarcity-ray ledger show ledger.sqlite",
        "scarcity-ray ledger verify postgresql://ann@db/budgets --head HASH",
    )
)
def ledger() -> None:
    """Read a federation's privacy ledger, the file or URL at ledger_path.

    Nothing running is disturbed, unless take-over is what you ask for.

    In a URL (postgresql://USER@HOST/DATABASE?federation=NAME) leave the password out, for the list of
    processes would show it: libpq takes it from ~/.pgpass or from PGPASSWORD.
    """


@ledger.command(
    epilog=examples(
        "scarcity-ray ledger show ledger.sqlite",
        "scarcity-ray ledger show ledger.sqlite --last 5 --format json",
    ),
)
@LEDGER
@click.option(
    "--last", type=click.IntRange(min=1), default=20, show_default=True, help="Newest rows to show."
)
@FORMAT
@only_prints
def show(path: str, last: int, form: str) -> ExitCode:
    """Print who was charged what and when, the noise, and the epsilon spent after it."""
    from scarcity_ray.cli.ledger import show_command

    return show_command(path, last, form)


@ledger.command(
    epilog=examples(
        "scarcity-ray ledger verify ledger.sqlite --head HASH",
    ),
)
@LEDGER
@click.option(
    "--head",
    metavar="HASH",
    help="The ledger_head of the newest global model: finds also truncation, rollback and forks.",
)
@FORMAT
@exits
def verify(path: str, head: str | None, form: str) -> ExitCode:
    """Find any edit, deletion or reordering of the ledger's rows; exit code 1 if there is one."""
    from scarcity_ray.cli.ledger import verify_command

    return verify_command(path, head, form)


@ledger.command(
    "take-over",
    epilog=examples(
        "scarcity-ray ledger take-over ledger.sqlite --operator ann",
    ),
)
@LEDGER
@click.option("--operator", metavar="NAME", required=True, help="Who decides it, as the ledger will record.")
@FORMAT
@exits
def take_over(path: str, operator: str, form: str) -> ExitCode:
    """End whoever holds the ledger: it charges and releases nothing from then on, and another may open it.

    A holder whose process has ended needs no take-over.
    """
    from scarcity_ray.cli.ledger import take_over_command

    return take_over_command(path, operator, form)


@ledger.command(
    "export",
    epilog=examples(
        "scarcity-ray ledger export ledger.sqlite --out ledger.jsonl",
    ),
)
@LEDGER
@click.option("--out", metavar="FILE", help="Write here; must be new. [default: standard output]")
@only_prints
def export_(path: str, out: str | None) -> ExitCode:
    """Write every row, with its clients, as one JSON object a line."""
    from scarcity_ray.cli.ledger import export_command

    return export_command(path, out)


@ledger.command(
    epilog=examples(
        "scarcity-ray ledger report ledger.sqlite",
        "scarcity-ray ledger report ledger.sqlite --out report.md",
    ),
)
@LEDGER
@click.option("--out", metavar="FILE", help="Write here; must be new. [default: standard output]")
@only_prints
def report(path: str, out: str | None) -> ExitCode:
    """Write for an ethics board what was claimed, what was spent when, and who agreed to what."""
    from scarcity_ray.cli.ledger_report import report_command

    return report_command(path, out)


@main.group(
    epilog=examples(
        "scarcity-ray keys init keys --host gateway.example.org",
        "scarcity-ray keys show keys",
    )
)
def keys() -> None:
    """Make what the gateways speak TLS with: two authorities, and a certificate (docs/keys.md)."""


KEYS = click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
HOSTS: dict[str, Any] = {
    "multiple": True,
    "metavar": "NAME",
    "help": "Name or address of the gateways; may be repeated.",
}


@keys.command(
    "init",
    epilog=examples("scarcity-ray keys init keys --host gateway.example.org --host 192.0.2.7"),
)
@KEYS
@click.option("--host", "hosts", required=True, **HOSTS)
@exits
def keys_init(folder: str, hosts: tuple[str, ...]) -> ExitCode:
    """Make new authorities and the gateways' certificate in DIR."""
    from scarcity_ray.cli.keys import init_command

    return init_command(folder, hosts)


@keys.command(
    "show",
    epilog=examples("scarcity-ray keys show keys", "scarcity-ray keys show keys --format json"),
)
@KEYS
@FORMAT
@only_prints
def keys_show(folder: str, form: str) -> ExitCode:
    """Print each certificate's hosts, its end and its fingerprint; exit code 1 if one has expired."""
    from scarcity_ray.cli.keys import show_command

    return show_command(folder, form)


@keys.command("renew", epilog=examples("scarcity-ray keys renew keys --host gateway.example.org"))
@KEYS
@click.option("--host", "hosts", **HOSTS)
@exits
def keys_renew(folder: str, hosts: tuple[str, ...]) -> ExitCode:
    """Put a new certificate in place of the gateways', with the same hosts unless others are given."""
    from scarcity_ray.cli.keys import renew_command

    return renew_command(folder, hosts)


@main.group(
    "client-kit",
    epilog=examples(
        "scarcity-ray client-kit make runs/hospitals hospital_1 --domain hospitals",
        "scarcity-ray client-kit list runs/hospitals",
        "scarcity-ray client-kit revoke runs/hospitals hospital_1",
    ),
)
def client_kit() -> None:
    """Invite sites to a served federation, list and revoke them, beside running gateways.

    JOB is the folder of the run that serves it; or the job's file, if it has federation.storage_path.
    """


JOB = click.argument("place", metavar="JOB", type=click.Path(exists=True))
CLIENT = click.argument("client_id", metavar="CLIENT")


@client_kit.command(
    "make",
    epilog=examples(
        "scarcity-ray client-kit make runs/hospitals hospital_1 --domain hospitals",
        "scarcity-ray client-kit make job.yaml hospital_1 --domain hospitals --again --out new.zip",
    ),
)
@JOB
@CLIENT
@click.option(
    "--domain", "domain_id", metavar="NAME", required=True, help="What it has in common with others."
)
@click.option("--feature", "features", type=float, multiple=True, help="Of its fingerprint; may be repeated.")
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True, max=365),
    default=7.0,
    show_default=True,
    help="For which its token can be used.",
)
@click.option("--out", metavar="FILE", help="The kit, a new zip file. [default: CLIENT.zip]")
@click.option(
    "--authority",
    metavar="FILE",
    help="PEM of whoever signs the certificate that sites see, where a proxy ends TLS.",
)
@click.option("--again", is_flag=True, help="For a site that is enrolled, or was revoked, under other keys.")
@exits
def client_kit_make(**given: Any) -> ExitCode:
    """Write the kit of one site: one file, with a token that enrols it once, and no private key."""
    from scarcity_ray.cli.client_kit import make_command

    return make_command(**given)


@client_kit.command(
    "list",
    epilog=examples("scarcity-ray client-kit list runs/hospitals --format json"),
)
@JOB
@FORMAT
@only_prints
def client_kit_list(place: str, form: str) -> ExitCode:
    """Print who is enrolled, invited or revoked, and for how long certificates and tokens are good."""
    from scarcity_ray.cli.client_kit import list_command

    return list_command(place, form)


@client_kit.command(
    "revoke",
    epilog=examples("scarcity-ray client-kit revoke runs/hospitals hospital_1"),
)
@JOB
@CLIENT
@exits
def client_kit_revoke(place: str, client_id: str) -> ExitCode:
    """Refuse a site from its next request on."""
    from scarcity_ray.cli.client_kit import revoke_command

    return revoke_command(place, client_id)


@main.group(
    epilog=examples(
        "scarcity-ray roster key operator.pem",
        "scarcity-ray roster sign roster.json --key operator.pem",
    )
)
def roster() -> None:
    """Sign who the baskets are, where operator_key asks for it, away from the cluster.

    A driver writes get_roster().to_json() to a file and gives what comes back to sign_roster(). The password
    of the key file comes from SCARCITY_RAY_OPERATOR_PASSWORD, or is asked for.
    """


PASSWORD = click.option(
    "--password", envvar="SCARCITY_RAY_OPERATOR_PASSWORD", prompt=True, hide_input=True, hidden=True
)


@roster.command(
    epilog=examples(
        "scarcity-ray roster key operator.pem",
    ),
)
@click.argument("key", type=click.Path(dir_okay=False))
@PASSWORD
@exits
def key(key: str, password: str) -> ExitCode:
    """Make the operator's identity, a new encrypted file KEY; print its half for operator_key."""
    from scarcity_ray.cli.roster import key_command

    return key_command(key, password)


@roster.command(
    epilog=examples(
        "scarcity-ray roster sign roster.json --key operator.pem --out signed.json",
    ),
)
@click.argument("path", type=click.Path(dir_okay=False))
@click.option("--key", required=True, metavar="FILE", help="The operator's identity file.")
@click.option("--out", metavar="FILE", help="Write here; must be new. [default: standard output]")
@PASSWORD
@exits
def sign(path: str, key: str, out: str | None, password: str) -> ExitCode:
    """Sign the roster in the file PATH, after showing on standard error who is on it."""
    from scarcity_ray.cli.roster import sign_command

    return sign_command(path, key, out, password)


@main.group(
    epilog=examples(
        "scarcity-ray audit receipt receipt.json --release releases.jsonl --proof proof.json",
    )
)
def audit() -> None:
    """Check what a federation has signed, away from the cluster."""


@audit.command(
    epilog=examples(
        "scarcity-ray audit receipt receipt.json --release releases.jsonl --proof proof.json",
    ),
)
@click.argument("path", type=click.Path(dir_okay=False))
@click.option(
    "--release",
    "releases",
    multiple=True,
    metavar="FILE",
    help="Records of the releases since then, one a line; may be repeated.",
)
@click.option("--proof", metavar="FILE", help="What the baskets say, from prove_receipt.")
@click.option(
    "--roster", "rosters", multiple=True, metavar="FILE", help="Believe no keys but its; may be repeated."
)
@FORMAT
@exits
def receipt(
    path: str, releases: tuple[str, ...], proof: str | None, rosters: tuple[str, ...], form: str
) -> ExitCode:
    """Say whether the update of the receipt in the file PATH was counted, once, or why not.

    Exit code 0 if it is shown to be in exactly one of the releases, 1 if not.
    """
    from scarcity_ray.cli.audit import receipt_command

    return receipt_command(path, releases, proof, rosters, form)


@audit.command(
    epilog=examples(
        "scarcity-ray audit rows /srv/town/state --output rows.bin",
        "scarcity-ray audit rows /srv/town/state --output rows.bin --basket north_basket_0 --round 3",
    ),
)
@click.argument("storage")
@click.option("--output", required=True, metavar="FILE", help="The file to write, for `audit replay`.")
@click.option("--basket", metavar="ID", help="Of this basket alone.")
@click.option("--round", "round_id", type=click.IntRange(min=0), help="Of this round alone.")
@exits
def rows(storage: str, output: str, basket: str | None, round_id: int | None) -> ExitCode:
    """Take the noised rows that a federation retains in STORAGE, its storage_path, away as one file."""
    from scarcity_ray.cli.audit import rows_command

    return rows_command(storage, output, basket, round_id)


@audit.command(
    epilog=examples("scarcity-ray audit replay rows.bin --release releases.jsonl --roster roster.json"),
)
@click.argument("path", type=click.Path(dir_okay=False))
@click.option(
    "--release",
    "releases",
    multiple=True,
    metavar="FILE",
    help="Records of the releases that the aggregates are in, one a line; may be repeated.",
)
@click.option(
    "--roster", "rosters", multiple=True, metavar="FILE", help="Believe no keys but its; may be repeated."
)
@click.option(
    "--receipt", "receipts", multiple=True, metavar="FILE", help="Find the row of this receipt, too."
)
@click.option("--rule", metavar="MODULE:NAME", help="Load and run this rule from outside, if it is the one.")
@FORMAT
@exits
def replay(
    path: str,
    releases: tuple[str, ...],
    rosters: tuple[str, ...],
    receipts: tuple[str, ...],
    rule: str | None,
    form: str,
) -> ExitCode:
    """Run baskets' rules again on the rows in the file PATH, from `audit rows`, and say what differs.

    Exit code 0 if each aggregate has the bytes that its basket signed for a release, 1 if not.
    """
    from scarcity_ray.cli.audit import replay_command

    return replay_command(path, releases, rosters, receipts, rule, form)


@main.command(
    epilog=examples(
        "scarcity-ray status hospitals --address HEAD:6379",
        "scarcity-ray status hospitals --watch",
        "scarcity-ray status https://gateway.example.org:8443 --token-file token --ca server-ca.pem",
    )
)
@click.argument("where", metavar="NAME|URL")
@click.option("--address", metavar="A", help="Of the Ray cluster on which NAME runs.")
@click.option("--token-file", metavar="FILE", help="Your operator's token, for a URL.")
@click.option("--ca", metavar="FILE", help="The gateway's certificate authority. [default: the system's]")
@click.option("--watch", is_flag=True, help="Print it again and again, until interrupted.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.2),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How often, with --watch.",
)
@FORMAT
@only_prints
def status(**given: Any) -> ExitCode:
    """Say what a federation is doing: round, sites, privacy budget, refusals, losses.

    NAME is a named federation's on a Ray cluster, URL a gateway's. A gateway asks for an operator's token:
    --token-file, or the variable SCARCITY_RAY_OPERATOR_TOKEN.
    """
    from scarcity_ray.cli.status import status_command

    return status_command(**given)


@main.group(
    epilog=examples(
        "scarcity-ray operators add 'Ann Berg' --role operate", "scarcity-ray operators revoke 'Ann Berg'"
    )
)
def operators() -> None:
    """Say who may watch a federation at its gateways, or run it.

    Each has a token, of which the file keeps a hash alone. Gateways read the file again when it changes.
    """


OPERATORS = click.option(
    "--file",
    "path",
    metavar="FILE",
    default="operators.json",
    show_default=True,
    help="That gateway.operators names.",
)


@operators.command(epilog=examples("scarcity-ray operators add 'Ann Berg' --role operate > token"))
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["read", "operate"]),
    default="read",
    show_default=True,
    help="read: see. operate: also renew the budget, remove sites, pause and resume.",
)
@OPERATORS
@exits
def add(name: str, role: str, path: str) -> ExitCode:
    """Add an operator, and print the token; it is shown this once."""
    from scarcity_ray.cli.operators import add_command

    return add_command(name, role, path)


@operators.command(epilog=examples("scarcity-ray operators revoke 'Ann Berg'"))
@click.argument("name")
@OPERATORS
@exits
def revoke(name: str, path: str) -> ExitCode:
    """Remove an operator; the token is refused from the next request on."""
    from scarcity_ray.cli.operators import revoke_command

    return revoke_command(name, path)


@operators.command("list", epilog=examples("scarcity-ray operators list"))
@OPERATORS
@FORMAT
@only_prints
def list_(path: str, form: str) -> ExitCode:
    """Print who there is and since when, never a token."""
    from scarcity_ray.cli.operators import list_command

    return list_command(path, form)


@main.command(epilog=examples("scarcity-ray dashboard > scarcity_ray.json"))
@only_prints
def dashboard() -> ExitCode:
    """Print a Grafana dashboard of the metrics, in the format of Ray's own dashboards."""
    from scarcity_ray.cli.dashboard import dashboard_command

    return dashboard_command()


@main.group(
    "config",
    epilog=examples(
        "scarcity-ray config schema > job.schema.json", "scarcity-ray config reference > keys.md"
    ),
)
def config_() -> None:
    """Print what keys a job's file may have, for an editor or for people."""


@config_.command(epilog=examples("scarcity-ray config schema > job.schema.json"))
@only_prints
def schema() -> ExitCode:
    """Print the JSON Schema of a job's file, by which editors complete, explain and check its keys."""
    from scarcity_ray.cli.config import schema_command

    return schema_command()


@config_.command(epilog=examples("scarcity-ray config reference > keys.md"))
@only_prints
def reference() -> ExitCode:
    """Print a page in Markdown with every key, its default, what it accepts and what it means."""
    from scarcity_ray.cli.config import reference_command

    return reference_command()

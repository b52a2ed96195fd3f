"""The commands and their options; each hands over to one function of a module that is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from scheduler_search.errors import SchedulerSearchError

app = typer.Typer(
    name="scheduler-search",
    help="Search, validate, freeze and apply per-layer keep-rate schedules for the vision tokens of multimodal LLMs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a study.")]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A study file; studies/README.md has every key.")]
ScheduleFile = Annotated[Path, typer.Argument(metavar="SCHEDULE.json", help="A schedule document.")]
State = Literal["queued", "running", "interrupted", "failed", "finished", "cancelled"]
AlgorithmName = Literal["g-search", "p-sigmoid", "frontier"]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        envvar="SCHEDULER_SEARCH_RAY",
        help="Run the model on the workers of a Ray cluster: host:port of its head, auto (the one of this machine), or "
        "local (a private one, for this command).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.callback()
def options(
    context: typer.Context,
    database: Annotated[
        str,
        typer.Option(
            "--database",
            metavar="URL",
            envvar="SCHEDULER_SEARCH_DATABASE",
            help="The study database.",
        ),
    ] = "sqlite:///scheduler-search.db",
) -> None:
    """Options of every command."""
    context.obj = database


@app.command()
def launch(
    context: typer.Context,
    study_file: StudyFile,
    ray: Ray = None,
) -> None:
    """Start the study of a study file, or go on with it if it was started before."""
    from scheduler_search.cli.search import launch_study

    launch_study(context.obj, study_file, ray)


@app.command()
def resume(
    context: typer.Context,
    name: Name,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over", help="Do not wait until whoever ran it has fallen silent; it stops, if it still runs."
        ),
    ] = False,
    ray: Ray = None,
) -> None:
    """Go on with an interrupted study, exactly where it stopped."""
    from scheduler_search.cli.search import resume_study

    resume_study(context.obj, name, take_over, ray)


@app.command()
def status(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of a study; all studies without it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the studies of the database, or the stages and decisions of one."""
    from scheduler_search.cli.status import print_status

    print_status(context.obj, name, as_json)


@app.command()
def export(
    context: typer.Context,
    name: Name,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the schedules.")] = Path("schedules"),
    tflops: Annotated[
        float | None,
        typer.Option(
            "--tflops",
            metavar="X",
            min=0.0,
            help="Of a frontier study: the best schedule of at most X TFLOPs per prefill.",
        ),
    ] = None,
    keep_rate: Annotated[
        float | None,
        typer.Option(
            "--keep-rate",
            metavar="X",
            min=0.0,
            max=1.0,
            help="Of a frontier study: the best schedule with a mean keep rate of X from the first searched layer on.",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="X",
            min=0.0,
            max=1.0,
            help="Write nothing and exit with 3 if the upper 95 % limit of the loss on the validation split exceeds X. "
            "Of a frontier study, without the two options above: the cheapest schedule expected to pass that gate.",
        ),
    ] = None,
    allow_unvalidated: Annotated[
        bool, typer.Option("--allow-unvalidated", help="Export a study that has no validation split.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Measure again and replace the recorded export.")] = False,
    ray: Ray = None,
) -> None:
    """Validate the schedule that a study found on data it never saw, freeze it, and write it as JSON."""
    from scheduler_search.cli.export import export_schedule

    export_schedule(
        context.obj,
        name,
        out,
        tflops=tflops,
        keep_rate=keep_rate,
        max_drop=max_drop,
        allow_unvalidated=allow_unvalidated,
        replace=replace,
        ray=ray,
    )


@app.command()
def evaluate(
    context: typer.Context,
    schedule: ScheduleFile,
    study: Annotated[
        str | None,
        typer.Option(
            "--study",
            metavar="NAME|STUDY.toml",
            help="Where model and data come from; the study that made the schedule without it.",
        ),
    ] = None,
    split: Annotated[
        Literal["search", "validation", "test"], typer.Option("--split", help="Which data.")
    ] = "validation",
    as_json: AsJson = False,
    ray: Ray = None,
) -> None:
    """Apply a schedule to its model and compare it with the unreduced model: score, cost, milliseconds."""
    from scheduler_search.cli.evaluate import evaluate_schedule

    evaluate_schedule(context.obj, schedule, study, split, as_json, ray)


@app.command()
def show(schedule: ScheduleFile) -> None:
    """Print a schedule: keep rates per layer as a bar chart, rules, provenance and measurements."""
    from scheduler_search.cli.show import show_schedule

    show_schedule(schedule)


@app.command()
def check(schedule: ScheduleFile) -> None:
    """Check a schedule document: format, digests, keep rates and rules. Loads no model."""
    from scheduler_search.cli.show import check_schedule

    check_schedule(schedule)


@app.command()
def rules(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name of a rule; all rules without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the rules that pick the tokens to drop, or show one: where it acts, its parameters, its source."""
    from scheduler_search.cli.rules import print_rules

    print_rules(name, as_json)


@app.command()
def submit(
    context: typer.Context,
    study_file: StudyFile,
    priority: Annotated[
        int, typer.Option("--priority", metavar="N", min=-1000, max=1000, help="Higher ones are run first.")
    ] = 0,
) -> None:
    """Queue the study of a study file for whoever runs `coordinate`; again: change its priority."""
    from scheduler_search.cli.queue import submit_study

    submit_study(context.obj, study_file, priority)


@app.command()
def coordinate(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Stop when nothing waits, instead of waiting for more.")] = False,
    ray: Ray = None,
) -> None:
    """Run queued studies, and those whose process died, one after the other; start it as often as there are workers."""
    from scheduler_search.cli.queue import coordinate_studies

    coordinate_studies(context.obj, once, ray)


@app.command()
def cancel(context: typer.Context, name: Name) -> None:
    """Cancel a study; whoever runs it stops. What is recorded stays."""
    from scheduler_search.cli.queue import cancel_study

    cancel_study(context.obj, name)


@app.command()
def retry(context: typer.Context, name: Name) -> None:
    """Queue a study again that failed, was cancelled or interrupted; it goes on where it stopped."""
    from scheduler_search.cli.queue import retry_study

    retry_study(context.obj, name)


@app.command()
def logs(
    context: typer.Context,
    name: Name,
    lines: Annotated[int, typer.Option("--lines", metavar="N", min=1, help="At most so many, the newest.")] = 100,
) -> None:
    """Print the log of a study: who ran it, stages, decisions, errors; times are UTC."""
    from scheduler_search.cli.queue import print_logs

    print_logs(context.obj, name, lines)


@app.command("list")
def list_(
    context: typer.Context,
    state: Annotated[State | None, typer.Option("--state", help="Only those in that state.")] = None,
    algorithm: Annotated[AlgorithmName | None, typer.Option("--algorithm", help="Only those that search so.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="TEXT", help="Only those with TEXT in the model's id.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List studies with their place in the queue: state, priority, attempts, owner."""
    from scheduler_search.cli.queue import list_studies

    list_studies(context.obj, state, algorithm, model, as_json)


campaign_app = typer.Typer(help="Run many studies of one file on a Ray cluster.", no_args_is_help=True)
app.add_typer(campaign_app, name="campaign")

CampaignFile = Annotated[
    Path, typer.Argument(metavar="FILE.toml", help="A campaign file; studies/campaigns.md has every key.")
]


@campaign_app.command("run")
def campaign_run(
    context: typer.Context,
    file: CampaignFile,
    ray: Ray = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a campaign that began: with all studies that are not finished.")
    ] = False,
) -> None:
    """Run every study of a campaign file, as many at once as fit, and print what each came to."""
    from scheduler_search.cli.campaign import run_campaign

    run_campaign(context.obj, file, ray, resume)


@campaign_app.command("status")
def campaign_status(context: typer.Context, file: CampaignFile, as_json: AsJson = False) -> None:
    """Show the studies of a campaign file: state, score, loss, TFLOPs and milliseconds of each."""
    from scheduler_search.cli.campaign import print_campaign

    print_campaign(context.obj, file, as_json)


database_app = typer.Typer(help="Make, upgrade, describe and copy the study database.", no_args_is_help=True)
app.add_typer(database_app, name="database")


@database_app.command("init")
def database_init(context: typer.Context) -> None:
    """Make all tables in an empty database; other commands do so too, where they may."""
    from scheduler_search.cli.database import init_database

    init_database(context.obj)


@database_app.command("upgrade")
def database_upgrade(context: typer.Context) -> None:
    """Bring a database that an older version of this program wrote to this version. Make a backup first."""
    from scheduler_search.cli.database import upgrade

    upgrade(context.obj)


@database_app.command("status")
def database_status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the server, the version, the rows of every table, studies by state, and shared evaluations."""
    from scheduler_search.cli.database import print_database

    print_database(context.obj, as_json)


@database_app.command("backup")
def database_backup(
    context: typer.Context, file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")]
) -> None:
    """Write a consistent copy of an SQLite database, also while studies run."""
    from scheduler_search.cli.database import backup

    backup(context.obj, file)


def main() -> None:
    """Run the command line. An error of ours is one line and its exit code; Ctrl-C is 130."""
    try:
        app()
    except SchedulerSearchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)

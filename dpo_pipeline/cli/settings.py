"""Settings of the commands from the environment and from a file; flags win over both.

They go through click: its prefix for the environment, its `default_map` for the file. All of a file
is checked, whichever command runs, before a value of it is used.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any, Final

import click

from dpo_pipeline.columns import did_you_mean
from dpo_pipeline.errors import StorageError, UsageError
from dpo_pipeline.tables import without_secrets

PREFIX: Final = "DPO_PIPELINE"
"""Prefix of variables: DPO_PIPELINE_EVALUATE_BETA is for one command, DPO_PIPELINE_BETA for all."""

TABLE: Final = "dpo-pipeline"
"""The table below `tool` in a pyproject.toml."""

OTHERS: Final = "Running and printing"
"""Heading of options that belong to no group of the library."""

_PROJECT: Final = "pyproject.toml"
_LARGEST: Final = 10_000_000  # bytes
_USED: Final = "dpo_pipeline.settings"
_CONFIG: Final = "config"
_FOUND: Final = "dpo_pipeline.found"
_REFUSED: Final = "dpo_pipeline.refused"
TYPED: Final = "dpo_pipeline.typed"
"""What a context remembers: the words of the command line."""
_NUMBER: Final = ((int, float), "a number")
_TAKES: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "float": _NUMBER,
    "integer": ((int,), "an integer"),
    "boolean": ((bool,), "true or false"),
    "count|share": ((int, float, str), "a count (10) or a share (0.01, '1%')"),
}


class SettingOption(click.Option):
    """An option that a variable without the command's name sets too; errors name the variable.

    What `needs_consent` is refused from a settings file that was found, and not named. Of values of
    an option that `is_secret`, only the names are shown. One that `splits` takes several values
    with commas between them. One that `is_apart` has a variable of its command alone, as another
    command's option of its name means something else. `--help` shows it in its `section`.
    """

    def __init__(
        self,
        *names: Any,
        needs_consent: bool = False,
        is_apart: bool = False,
        is_secret: bool = False,
        splits: bool = False,
        section: str = OTHERS,
        **more: Any,
    ) -> None:
        super().__init__(*names, **more)
        self.needs_consent = needs_consent
        self.is_apart = is_apart
        self.is_secret = is_secret
        self.splits = splits
        self.section = section

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Convert the value, and note where it is from if not from the command line."""
        source = ctx.get_parameter_source(self.name or "")
        origin = ""
        if source is click.core.ParameterSource.ENVIRONMENT:
            origin = next(name for name in self._variables(ctx) if os.environ.get(name))
        elif source is click.core.ParameterSource.DEFAULT_MAP:
            origin = ctx.meta[_CONFIG]
            if self.needs_consent and value and ctx.meta[_FOUND] and not ctx.resilient_parsing:
                key = key_of(self)
                said = (
                    f"{origin}: {key}: needs consent, because this file was found and not named: "
                    f"give --{key} on the command line, or --config {origin}"
                )
                if not self.is_flag:
                    raise UsageError(said)
                # Commands that write nothing have no use for --overwrite.
                ctx.meta[_REFUSED] = said
                return super().process_value(ctx, False)  # noqa: FBT003
        try:
            made = super().process_value(ctx, value)
        except click.BadParameter as error:
            if not origin:
                raise
            raise click.BadParameter(
                f"{error.message} It is from {origin}.", ctx=ctx, param=self
            ) from error
        if origin and self.expose_value and not ctx.resilient_parsing:
            values = list(made) if isinstance(made, tuple) else made
            if self.is_secret:
                values = [str(each).partition("=")[0] for each in made]
            used(ctx).append(f"{key_of(self)} = {values!r}, from {origin}")
        return made

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the values with their type; text with commas is several where the option splits.

        Where one was asked for, the error says which command takes several.
        """
        texts = value if isinstance(value, (list, tuple)) else [value]
        has_several = [isinstance(each, str) and "," in each for each in texts]
        if self.splits and any(has_several):
            value = [part for each in texts for part in f"{each}".split(",")]
        elif any(has_several) and self.type is click.FLOAT:
            meant = _sweep_of(ctx) if self.name == "beta" else None
            hint = f"; for each of them: `{meant}`" if meant else ""
            raise click.BadParameter(f"takes one number, found {value!r}{hint}", ctx, self)
        return super().type_cast_value(ctx, value)

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """Return the text of the command's own variable, else of that of all commands."""
        return next(filter(None, map(os.environ.get, self._variables(ctx))), None)

    def _variables(self, ctx: click.Context) -> tuple[str, str]:
        name = (self.name or "").upper()
        own = f"{ctx.auto_envvar_prefix}_{name}"
        return own, own if self.is_apart else f"{PREFIX}_{name}"


def used(ctx: click.Context) -> list[str]:
    """Return the options of a run that were not on the command line: their values, where from."""
    settings: list[str] = ctx.meta.setdefault(_USED, [])
    return settings


def as_typed(ctx: click.Context) -> str:
    """Return the command as it was typed, without secrets, for a shell."""
    names = {
        name
        for option in ctx.command.params
        if isinstance(option, SettingOption) and option.is_secret
        for name in option.opts
    }
    words: list[str] = []
    for word in ctx.meta.get(TYPED, ()):
        flag, equals, value = word.partition("=")
        if words and words[-1] in names:
            flag, equals, _ = word.partition("=")
            words.append(f"{flag}=***" if equals else "***")
        elif flag in names and equals:
            words.append(f"{flag}={value.partition('=')[0]}=***")
        else:
            words.append(without_secrets(word))
    return shlex.join(words)


def _sweep_of(ctx: click.Context) -> str | None:
    """Return the command of `sweep` for what was typed to evaluate, of the options it has."""
    group = ctx.find_root().command
    sweep = group.commands.get("sweep") if isinstance(group, click.Group) else None
    if sweep is None or ctx.info_name != "evaluate":
        return None
    taken = {flag for option in sweep.params for flag in option.opts}
    has_value = {
        flag: not getattr(option, "is_flag", False)
        for option in ctx.command.params
        for flag in option.opts
    }
    program, _, *words = shlex.split(as_typed(ctx))
    kept = [program, "sweep"]
    while words:
        word = words.pop(0)
        flag, equals, _ = word.partition("=")
        size = int(has_value.get(flag, False) and not equals and bool(words))
        if flag in taken or not word.startswith("-"):
            kept += [word, *words[:size]]
        del words[:size]
    return shlex.join(kept)


def key_of(option: click.Parameter) -> str:
    """Return what an option is called in a file: its long name without the dashes."""
    return max(option.opts, key=len).lstrip("-")


def _apply(ctx: click.Context, _option: click.Parameter, path: str | None) -> None:
    if ctx.resilient_parsing:  # during shell completion
        return
    group = ctx.find_root().command
    every = group.commands if isinstance(group, click.Group) else {ctx.info_name or "": ctx.command}
    commands: dict[str, dict[str, click.Option]] = {}
    # The command that runs comes first, so that errors name it if it has the option.
    for name in sorted(every, key=lambda name: name != ctx.info_name):
        options = {key_of(p): p for p in every[name].params if isinstance(p, click.Option)}
        if _CONFIG in options:
            commands[name] = options
    _refuse_unknown_variables(commands)
    found = _file(path)
    if found is None:
        return
    name, table = found
    ctx.meta[_CONFIG] = name
    ctx.meta[_FOUND] = path is None
    ctx.default_map = _checked(name, table, commands, ctx)[ctx.info_name or ""]


def refuse_found(ctx: click.Context, *outputs: object) -> None:
    """Raise a UsageError if there are outputs, and a file that was found says how to treat them."""
    if _REFUSED in ctx.meta and any(outputs):
        raise UsageError(ctx.meta[_REFUSED])


def config_option() -> click.Option:
    """Return the option that makes a command take settings."""
    return SettingOption(
        ["--config"],
        type=click.Path(),
        is_eager=True,
        expose_value=False,
        callback=_apply,
        help="Take defaults of options from this TOML file. [default: the nearest pyproject.toml "
        f"here or above, up to the repository or the home folder, with a table [tool.{TABLE}]]",
    )


def config_file(ctx: click.Context) -> str | None:
    """Return the file that settings were taken from."""
    found: str | None = ctx.meta.get(_CONFIG)
    return found


def _refuse_unknown_variables(commands: Mapping[str, Mapping[str, click.Option]]) -> None:
    known = set()
    for command, options in commands.items():
        for option in options.values():
            name = (option.name or "").upper()
            known |= {f"{PREFIX}_{name}", f"{PREFIX}_{command.upper()}_{name}"}
    for variable in sorted(os.environ):
        if variable.startswith(f"{PREFIX}_") and variable not in known:
            raise UsageError(
                f"environment: {variable} names no option{did_you_mean(variable, sorted(known))}"
            )


def _file(path: str | None) -> tuple[str, Mapping[str, Any]] | None:
    """Return the file that settings are in and their table; None if there is none."""
    if path is not None:
        document = _document(path)
        if "tool" not in document:
            return path, document
        table = _project_table(path, document)
        if table is None:
            raise UsageError(f"{path}: there is no table [tool.{TABLE}] in it")
        return path, table
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # it was removed, and so has nothing in it or above it
        return None
    while True:
        place = os.path.join(folder, _PROJECT)
        if os.path.isfile(place):
            table = _project_table(place, _document(place, "; take another file: --config FILE"))
            if table is not None:
                return place, table
        is_top = os.path.exists(os.path.join(folder, ".git")) or folder == os.path.dirname(folder)
        if is_top or os.path.realpath(folder) == os.path.realpath(os.path.expanduser("~")):
            return None
        folder = os.path.dirname(folder)


def _document(path: str, advice: str = "") -> dict[str, Any]:
    import tomllib  # costs a tenth of what --help does

    try:
        # A pipe without a writer would be waited for, and a device may have no end.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            os.set_blocking(file.fileno(), True)
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise UsageError(f"{path}: is no file of settings: it has over {_LARGEST:,} bytes")
        return tomllib.loads(text.decode("utf-8-sig"))
    except OSError as error:
        raise StorageError(path, f"settings cannot be read: {error.strerror}{advice}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not TOML: {error}{advice}") from error


def _project_table(path: str, document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    tools = document.get("tool", {})
    if not isinstance(tools, dict):
        raise UsageError(f"{path}: tool must be a table, found {tools!r}")
    for name in tools:
        if name != TABLE and name.lower().replace("_", "-") == TABLE:
            raise UsageError(f"{path}: [tool.{name}]: did you mean [tool.{TABLE}]?")
    table = tools.get(TABLE)
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{path}: tool.{TABLE} must be a table, found {table!r}")
    return table


def _checked(
    path: str,
    table: Mapping[str, Any],
    commands: Mapping[str, Mapping[str, click.Option]],
    ctx: click.Context,
) -> dict[str, dict[str, Any]]:
    """Return the value of each option of each command, by its name in Python."""
    values: dict[str, dict[str, Any]] = {name: {} for name in commands}
    own = {name: table[name] for name in commands if isinstance(table.get(name), dict)}
    shared = {key: value for key, value in table.items() if key not in own}
    every = {key for options in commands.values() for key in options} - {_CONFIG}
    for key, value in shared.items():
        if key not in every:
            raise UsageError(_unknown(path, key, value, [*sorted(every), *commands], ctx))
        unfit: dict[str, UsageError] = {}
        # The command's own table overrides this value, which need not suit it.
        takers = [
            name
            for name in commands
            if key in commands[name]
            and key not in own.get(name, {})
            and not getattr(commands[name][key], "is_apart", False)
        ]
        for name in takers:
            try:
                given = _value(f"{path}: {key} (of {name})", path, commands[name][key], value)
                values[name][commands[name][key].name or key] = given
            except UsageError as error:
                unfit[name] = error
        fits = [name for name in takers if name not in unfit]
        # A list of betas is for the command that takes several.
        if unfit and (ctx.info_name in unfit or not fits):
            refusal = unfit.get(ctx.info_name or "") or next(iter(unfit.values()))
            hint = f"; {fits[0]} takes it, in a table of its own" if fits else ""
            raise UsageError(f"{refusal}{hint}")
    for name, keys in own.items():
        known = sorted(set(commands[name]) - {_CONFIG})
        for key, value in keys.items():
            if key not in known:
                raise UsageError(_unknown(path, f"{name}.{key}", value, known, ctx))
            option = commands[name][key]
            given = _value(f"{path}: {name}.{key}", path, option, value)
            values[name][option.name or key] = given
    return values


def _unknown(path: str, place: str, value: object, known: list[str], ctx: click.Context) -> str:
    key = place.rpartition(".")[2]
    group = ctx.find_root().command
    every = group.commands.values() if isinstance(group, click.Group) else [ctx.command]
    arguments = {p.name for c in every for p in c.params if isinstance(p, click.Argument)}
    if key in arguments or key == _CONFIG:
        return f"{path}: {place}: is given on the command line, and is no setting"
    if key in known and not isinstance(value, dict):
        return f"{path}: {place}: must be a table, found {value!r}"
    kind = "command with settings" if isinstance(value, dict) else "setting"
    hint = did_you_mean(key.replace("_", "-"), known) or f"; there are {', '.join(known)}"
    return f"{path}: {place}: there is no such {kind}{hint}"


def _value(place: str, path: str, option: click.Option, value: Any) -> Any:
    """Return a value as click takes it."""
    if isinstance(value, list) and option.multiple:
        return [_one(place, path, option, each) for each in value]
    given = _one(place, path, option, value)
    return [given] if option.multiple else given


def _one(place: str, path: str, option: click.Option, value: Any) -> Any:
    takes, words = _TAKES.get(option.type.name, ((str,), "a string"))
    if not isinstance(value, takes) or (isinstance(value, bool) and bool not in takes):
        many = f"{words}, or a list of such" if option.multiple else words
        found = "" if getattr(option, "is_secret", False) else f", found {value!r}"
        raise UsageError(f"{place}: must be {many}{found}")
    try:
        option.type.convert(value, option, None)
    except click.BadParameter as error:
        raise UsageError(f"{place}: {error.message}") from error
    if isinstance(option.type, click.Path) and isinstance(value, str):
        return _place(value, path)
    return value


def _place(value: str, path: str) -> str:
    """Return a path given in a settings file, where it is relative to that file."""
    folder = os.path.dirname(os.path.abspath(path))
    if "://" in value or folder == os.getcwd():
        return value
    return os.path.join(folder, value)

"""`lmlite completion bash|zsh|fish`: what a shell needs to complete commands, flags and their values.

The shell's script is a few lines that ask this command at each Tab: it reads the parser's own tree, so nothing that can
be said is missing and nothing is listed twice. Models come from the disk; files and folders are left to the shell.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from ..errors import LmError

FILES, FOLDERS = ":files", ":folders"
"""Lines that leave the word to the shell."""
PLACES: Final = {
    "DIR": FOLDERS,
    "FILE": FILES,
    "PATH": FILES,
    "PATH[=SCALE]": FILES,
    "MODEL.gguf": FILES,
    "file": FILES,
}
MODELS: Final = frozenset({"key", "model", "MODEL"})
LOADED: Final = frozenset({"identifier"})
"""What a value is, by the name that help gives it."""


class Candidate(NamedTuple):
    word: str
    help: str = ""


# ---- the command -----------------------------------------------------------------------------------------------------


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands in your shell",
        description="Print a script for a shell. In bash: eval \"$(lmlite completion bash)\", best in ~/.bashrc; in zsh the "
        "same with zsh in ~/.zshrc; in fish: lmlite completion fish > ~/.config/fish/completions/lmlite.fish",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=sorted(SCRIPTS), help="the shell")
    parser.set_defaults(run=run)
    # For those scripts: the words after the command's name, the last of them being written; each behind a mark, so that
    # none is taken for a flag of this.
    asked = commands.add_parser(ASKED, add_help=False)
    asked.add_argument("words", nargs="*")
    asked.set_defaults(run=lambda arguments, environ: answer([word[1:] for word in arguments.words]))


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(SCRIPTS[arguments.shell].replace("ASKED", ASKED), end="")
    return 0


def answer(words: list[str]) -> int:
    from . import build_parser

    for word, help in candidates(build_parser(), words or [""]):
        with suppress(UnicodeEncodeError):
            print(f"{word}\t{help}" if help else word)
    return 0


# ---- what can be written ---------------------------------------------------------------------------------------------


def candidates(parser: argparse.ArgumentParser, words: list[str]) -> Iterator[Candidate]:
    """What the last of `words` can become, in order."""
    *before, current = words
    given: set[int] = set()  # options that were said, by identity
    n_positional = 0
    options_end = False
    awaiting: argparse.Action | None = None
    for word in before:
        if awaiting is not None:
            awaiting = None
        elif word == "--":
            options_end = True
        elif word.startswith("-") and not options_end:
            flag, equals, _ = word.partition("=")
            option = options_of(parser).get(flag)
            if option is not None:
                given.add(id(option))
                awaiting = option if option.nargs != 0 and not equals else None
        elif (command := subcommands(parser)) is not None and word in command.choices:
            parser, given, n_positional = command.choices[word], set(), 0
        else:
            n_positional += 1
    if awaiting is not None:
        found = values(awaiting)
    elif current.startswith("-") and not options_end:
        found = flags(parser, current, given)
    else:
        found = arguments(parser, n_positional)
    for word, help in found:
        if word in (FILES, FOLDERS) or word.startswith(current):
            yield Candidate(word, help)


def flags(parser: argparse.ArgumentParser, current: str, given: set[int]) -> Iterator[Candidate]:
    """Long flags that were not said yet, or the values of the one that `current` gives a value by `=`."""
    flag, equals, _ = current.partition("=")
    if equals:
        option = options_of(parser).get(flag)
        for word, help in values(option) if option is not None else ():
            yield Candidate(word if word in (FILES, FOLDERS) else f"{flag}={word}", help)
        return
    for flag, option in options_of(parser).items():
        again = id(option) not in given or isinstance(option, argparse._AppendAction)
        if flag.startswith("--") and again and option.help != argparse.SUPPRESS:
            yield Candidate(flag, shown(option.help))


def arguments(parser: argparse.ArgumentParser, n_before: int) -> Iterator[Candidate]:
    """Commands, or values of the positional argument at hand."""
    command = subcommands(parser)
    if command is not None:
        for choice in command._choices_actions:
            yield Candidate(choice.dest, shown(choice.help))
        return
    positionals = [action for action in parser._actions if not action.option_strings]
    for number, action in enumerate(positionals):
        if number == n_before or (number < n_before and action.nargs in ("*", "+")):
            yield from values(action)


def values(action: argparse.Action) -> Iterator[Candidate]:
    if action.choices is not None:
        yield from (Candidate(str(choice)) for choice in action.choices)
        return
    name = action.metavar if isinstance(action.metavar, str) else action.dest
    if name in PLACES:
        yield Candidate(PLACES[name])
    elif name in MODELS:
        yield from map(Candidate, models(os.environ))
    elif name in LOADED:
        yield from map(Candidate, loaded(os.environ))
    elif "|" in name:  # words, or a number
        yield from (Candidate(word) for word in name.split("|") if word.islower())


def options_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.Action]:
    return parser._option_string_actions


def subcommands(parser: argparse.ArgumentParser) -> argparse._SubParsersAction[Any] | None:
    return next((action for action in parser._actions if isinstance(action, argparse._SubParsersAction)), None)


def shown(help: str | None) -> str:
    """The first sentence's worth of a help text, on one line."""
    return "" if help is None else " ".join(help.partition(" (default")[0].split())


def models(environ: Mapping[str, str]) -> Iterable[str]:
    """The ids of the models on disk."""
    from ..app.disk import open_catalog
    from ..config import gather

    with suppress(LmError):
        catalog = open_catalog(gather({}, environ))
        catalog.rescan()
        return [card.id for card in catalog.cards() if card.id.isprintable()]
    return ()


def loaded(environ: Mapping[str, str]) -> Iterable[str]:
    """The identifiers of the running server's models."""
    from .client import Client

    with suppress(LmError):
        return [str(found["identifier"]) for found in Client.find(environ).get("/lmlite/instances")["instances"]]
    return ()


# ---- scripts ---------------------------------------------------------------------------------------------------------

ASKED: Final = "__complete"

BASH: Final = r"""# Completes lmlite in bash.
_lmlite() {
    local line=${COMP_LINE:0:COMP_POINT} word candidate IFS=$' \t\n'
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    words=("${words[@]:1}")
    word=${words[${#words[@]} - 1]}
    COMPREPLY=()
    while IFS=$'\t' read -r candidate _; do
        case $candidate in
            :files | :folders)
                [[ $word == -*=* ]] && word=${word#*=}
                compopt -o filenames
                local kind=-f
                [[ $candidate == :folders ]] && kind=-d
                while IFS= read -r candidate; do COMPREPLY+=("$candidate"); done < <(compgen "$kind" -- "$word")
                return
                ;;
            *) COMPREPLY+=("$candidate") ;;
        esac
    done < <("${COMP_WORDS[0]}" ASKED "${words[@]/#/=}" 2>/dev/null)
    # Readline's word may begin later than ours, behind a colon or an equals sign: it wants the rest alone.
    local before=${word%"${COMP_WORDS[COMP_CWORD]}"}
    [[ ${COMP_WORDS[COMP_CWORD]} == [=:@] ]] && before=$word
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
complete -F _lmlite lmlite
"""

ZSH: Final = r"""#compdef lmlite
# Completes lmlite in zsh.
_lmlite() {
    local line word
    local -a found
    for line in "${(@f)$("${words[1]}" ASKED "${(@)words[2,CURRENT]/#/=}" 2>/dev/null)}"; do
        case $line in
            :files) [[ $PREFIX == -*=* ]] && compset -P '*='; _files; return ;;
            :folders) [[ $PREFIX == -*=* ]] && compset -P '*='; _files -/; return ;;
            ?*)
                word=${line%%$'\t'*}
                found+=("${word//:/\\:}${${line#$word}:+:${line#*$'\t'}}")
                ;;
        esac
    done
    (( ${#found} )) && _describe -V lmlite found
}
if [[ $funcstack[1] == _lmlite ]]; then _lmlite "$@"; else compdef _lmlite lmlite; fi
"""

FISH: Final = r"""# Completes lmlite in fish.
function __lmlite_complete
    set -l before (commandline -opc)
    set -l word (commandline -ct)
    set -l found ($before[1] ASKED "="$before[2..-1] "=$word" 2>/dev/null)
    switch "$found[1]"
        case :files
            __fish_complete_path (string replace -r -- '^-[^=]*=' '' $word)
        case :folders
            __fish_complete_directories (string replace -r -- '^-[^=]*=' '' $word)
        case '*'
            printf '%s\n' $found
    end
end
complete -c lmlite -f -a '(__lmlite_complete)'
"""

SCRIPTS: Final = {"bash": BASH, "zsh": ZSH, "fish": FISH}

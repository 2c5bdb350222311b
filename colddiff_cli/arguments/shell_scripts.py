"""How a shell asks colddiff what TAB offers: its script, as printed by `colddiff --show-completion`, and the answer.

Not Typer's own scripts, because they go wrong where words contain "=": bash splits such words, so `--set train.loss=l`
is never completed; bash and zsh add a space after `train.loss=`; `--preset=dig` completes only in bash. Fish would
start colddiff twice for every TAB. And Typer renders help with Rich, which takes 0.1 s and breaks it into lines.
"""

from __future__ import annotations

import os

from colddiff_core.text import one_line

ASKING = "_COLDDIFF_COMPLETE"  # Typer's name for it
LINE = "_COLDDIFF_LINE"  # the line up to the cursor
ASK = f"{ASKING}=complete_line {LINE}"
HEAD = "Printed by: colddiff --show-completion"

BASH = rf"""# TAB completion of colddiff for bash. {HEAD} bash
_colddiff() {{
    local line=${{COMP_LINE:0:COMP_POINT}} value
    local word=${{line##*[[:space:]]}}
    [[ $word == -*=* ]] && word=${{word#*=}}
    # Bash replaces only what follows the last = or : of the word, which is $2.
    local before=${{word%"$2"}}
    COMPREPLY=()
    while IFS=$'\t' read -r value _; do
        [[ $value ]] || continue
        value=${{value#"$before"}}
        [[ $value == *[!A-Za-z0-9_.,:=+/@%~-]* ]] && printf -v value %q "$value"
        COMPREPLY+=("$value")
    done < <({ASK}=$line "${{1/#\~/$HOME}}" 2>/dev/null)
    if [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
}}
complete -o default -F _colddiff colddiff
"""

ZSH = rf"""#compdef colddiff
# TAB completion of colddiff for zsh. {HEAD} zsh
_colddiff() {{
    local line="${{(j: :)words[1,CURRENT-1]}} $PREFIX" answer
    local -a plain open
    for answer in "${{(@f)$({ASK}=$line ${{(Q)~words[1]}} 2>/dev/null)}}"; do
        local value=${{answer%%$'\t'*}}
        local item=${{value//:/\\:}}
        [[ $answer == *$'\t'* ]] && item+=:${{answer#*$'\t'}}
        if [[ $value == *= ]]; then open+=("$item"); elif [[ -n $value ]]; then plain+=("$item"); fi
    done
    [[ $PREFIX == -*=* ]] && compset -P 1 '*='
    if (( ! $#plain && ! $#open )); then
        _files
        return
    fi
    _describe -t values value plain -- open -S ''
}}
if [[ $funcstack[1] == _colddiff ]]; then
    _colddiff "$@"
else
    (( $+functions[compdef] )) || {{ autoload -Uz compinit; compinit -i; }}
    compdef _colddiff colddiff
fi
"""

FISH = rf"""# TAB completion of colddiff for fish. {HEAD} fish
function __colddiff_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l start (string match -r -- '^-[^=]*=' $word)
    set -l answers (env {ASK}=(commandline -cp | string collect) $words[1] 2>/dev/null | string match -v '')
    if set -q answers[1]
        string join \n -- "$start"$answers
    else
        __fish_complete_path (string replace -r -- '^-[^=]*=' '' $word)
    end
end
complete -c colddiff -f -a '(__colddiff_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
FILES = {"bash": "colddiff.bash", "zsh": "_colddiff", "fish": "colddiff.fish"}


def register() -> None:
    """Make Typer answer the scripts: with lines of a value and, after a tab, its help if it has any."""
    # Typer's own copy of Click; where it is missing, only TAB fails.
    from typer._click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

    class LineComplete(ShellComplete):
        name = "line"
        source_template = ""

        def source_vars(self) -> dict[str, str]:
            return {}

        def get_completion_args(self) -> tuple[list[str], str]:
            line = os.environ[LINE]
            words = split_arg_string(line)[1:]
            return (words, "") if not words or line[-1].isspace() else (words[:-1], words[-1])

        def format_completion(self, item: CompletionItem) -> str:
            value = str(item.value)
            if one_line(value) != value:  # nobody can type it, and a terminal might obey it: no answer
                return ""
            return f"{value}\t{' '.join(one_line(item.help).split())}" if item.help else value

    add_completion_class(LineComplete, LineComplete.name)

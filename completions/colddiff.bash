# TAB completion of colddiff for bash. Printed by: colddiff --show-completion bash
_colddiff() {
    local line=${COMP_LINE:0:COMP_POINT} value
    local word=${line##*[[:space:]]}
    [[ $word == -*=* ]] && word=${word#*=}
    # Bash replaces only what follows the last = or : of the word, which is $2.
    local before=${word%"$2"}
    COMPREPLY=()
    while IFS=$'\t' read -r value _; do
        [[ $value ]] || continue
        value=${value#"$before"}
        [[ $value == *[!A-Za-z0-9_.,:=+/@%~-]* ]] && printf -v value %q "$value"
        COMPREPLY+=("$value")
    done < <(_COLDDIFF_COMPLETE=complete_line _COLDDIFF_LINE=$line "${1/#\~/$HOME}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _colddiff colddiff

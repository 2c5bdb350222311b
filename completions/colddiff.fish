# TAB completion of colddiff for fish. Printed by: colddiff --show-completion fish
function __colddiff_complete
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set -l start (string match -r -- '^-[^=]*=' $word)
    set -l answers (env _COLDDIFF_COMPLETE=complete_line _COLDDIFF_LINE=(commandline -cp | string collect) $words[1] 2>/dev/null | string match -v '')
    if set -q answers[1]
        string join \n -- "$start"$answers
    else
        __fish_complete_path (string replace -r -- '^-[^=]*=' '' $word)
    end
end
complete -c colddiff -f -a '(__colddiff_complete)'

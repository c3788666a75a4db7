"""What the shells run: each asks ``outmail completion SHELL`` what could stand at the cursor.

A word that ends in : or = is not finished, so no blank follows it. Does not: know commands or options.
"""

from __future__ import annotations

BASH = r"""# bash completion for outmail: what could follow is asked of outmail itself
_outmail() {
    local line kind='' cur=${COMP_WORDS[COMP_CWORD]}
    COMPREPLY=()
    while IFS= read -r line; do
        if [ -z "$kind" ]; then kind=$line; else COMPREPLY+=("$line"); fi
    done < <("${1/#\~/$HOME}" completion bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
    case $kind in
        files) compopt -o bashdefault -o default 2>/dev/null ;;
        folders) compopt -o dirnames 2>/dev/null ;;
        commands) while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -c -- "$cur") ;;
        *) if [ ${#COMPREPLY[@]} = 1 ]; then
               case ${COMPREPLY[0]} in *[:=]) compopt -o nospace 2>/dev/null ;; esac
           fi ;;
    esac
}
complete -F _outmail outmail
"""

ZSH = r"""#compdef outmail
# zsh completion for outmail: what could follow is asked of outmail itself
_outmail() {
    local line kind='' word
    local -a ended open
    while IFS= read -r line; do
        if [[ -z $kind ]]; then kind=$line; continue; fi
        word=${${line%%$'\t'*}//:/\\:}
        if [[ ${line%%$'\t'*} == *[:=] ]]; then open+=("$word:${line#*$'\t'}")
        else ended+=("$word:${line#*$'\t'}"); fi
    done < <("${(Q)words[1]/#\~/$HOME}" completion zsh "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)
    case $kind in
        files) _files ;;
        folders) _files -/ ;;
        commands) _command_names -e ;;
        *) _describe outmail ended -- open -S '' ;;
    esac
}
if [[ $funcstack[1] == _outmail ]]; then _outmail "$@"; else compdef _outmail outmail; fi
"""

FISH = r"""# fish completion for outmail: what could follow is asked of outmail itself
function __outmail_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program (string replace -r '^~' $HOME -- $words[1])
    set -l lines ($program completion fish $words[2..-1] "$current" 2>/dev/null)
    switch "$lines[1]"
        case files
            __fish_complete_path "$current"
        case folders
            __fish_complete_directories "$current" ''
        case commands
            __fish_complete_command
        case '*'
            printf '%s\n' $lines[2..-1]
    end
end
complete -c outmail -f -a '(__outmail_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
#: The path of each below share/ → its text.
FILES = {
    "bash-completion/completions/outmail": BASH,
    "zsh/site-functions/_outmail": ZSH,
    "fish/vendor_completions.d/outmail.fish": FISH,
}

# Words that the cases share.

# eventually COMMAND...: repeats it until it succeeds, for 60 s at most.
eventually() {
  local until=$((SECONDS + 60))
  until "$@"; do
    [ $SECONDS -lt $until ] || { echo "never: $*"; return 1; }
    sleep 0.2
  done
}

# same GOT WANTED: the two texts are equal.
same() {
  [ "$1" = "$2" ] || { printf 'got:    %s\nwanted: %s\n' "$1" "$2"; return 1; }
}

# has TEXT PART: the text contains the part.
has() {
  case "$1" in *"$2"*) ;; *) printf 'no %s in:\n%s\n' "$2" "$1"; return 1 ;; esac
}

# refused COMMAND...: it fails, and its message is printed.
refused() {
  local out
  if out=$("$@" 2>&1); then echo "was not refused: $out"; return 1; fi
  printf '%s' "$out"
}

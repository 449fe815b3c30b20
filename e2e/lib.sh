# Words that the cases share. `$ns` is the case's own namespace, `$work` a folder, `$image` the demo's image.

# k ARGUMENTS...: kubectl in the case's namespace.
k() { kubectl -n "$ns" "$@"; }

# eventually COMMAND...: repeats it until it succeeds, for 60 s at most.
eventually() {
  local until=$((SECONDS + 60))
  until "$@" >"$work/eventually.log" 2>&1; do
    [ $SECONDS -lt $until ] || { echo "never: $*"; cat "$work/eventually.log"; return 1; }
    sleep 0.2
  done
}

# same GOT WANTED: the two texts are equal.
same() {
  [ "$1" = "$2" ] || { printf 'got:    %s\nwanted: %s\n' "$1" "$2"; return 1; }
}

# shows PATTERN: what comes in has a line like it. It is read to its end: `grep -q` would go early, and the one who writes
# would break with the pipe.
shows() {
  grep "$@" >/dev/null
}

# has TEXT PART...: the text contains each part.
has() {
  local text=$1 part
  shift
  for part; do
    case "$text" in *"$part"*) ;; *) printf 'no %s in:\n%s\n' "$part" "$text"; return 1 ;; esac
  done
}

# lacks TEXT PART: the text does not contain the part.
lacks() {
  case "$1" in *"$2"*) printf '%s is in:\n%s\n' "$2" "$1"; return 1 ;; esac
}

# refused COMMAND...: it fails, and its message is printed.
refused() {
  local out
  if out=$("$@" 2>&1); then echo "was not refused: $out"; return 1; fi
  printf '%s' "$out"
}

# code COMMAND...: prints the exit code.
code() {
  local code=0
  "$@" >/dev/null 2>&1 || code=$?
  echo $code
}

# field KIND NAME JSONPATH: prints one field.
field() { k get "$1" "$2" -o jsonpath="{$3}"; }

# becomes KIND NAME JSONPATH WANTED: waits until a field has a value.
becomes() { eventually sh -c '[ "$(kubectl -n "$0" get "$1" "$2" -o jsonpath="{$3}")" = "$4" ]' "$ns" "$@"; }

# columns TEXT: the first line's words, joined by one space.
columns() { head -n 1 <<<"$1" | tr -s ' ' | sed 's/ *$//'; }

# sleeper NAME [FLAGS...]: a pod that waits until it is told to end; returns when it is ready.
sleeper() {
  local name=$1
  shift
  k run "$name" --image="$image" "$@" --command -- sh -c 'trap "exit 0" TERM; while :; do sleep 0.2; done'
  k wait pod "$name" --for=condition=Ready --timeout=60s
}

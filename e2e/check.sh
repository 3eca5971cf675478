#!/usr/bin/env bash
# Everything that can be said about the sources without running them. Every check runs, however many fail; the exit
# code says whether any did.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
tools=$root/.cache/tools
pins=$root/e2e/build/check
modules=(. e2e)
cd "$root" || exit 1
export GOFLAGS=-mod=readonly

build() { # once: a stamp holds the hash of the module's files
  local stamp pkg
  stamp=$tools/.check.$(cat "$pins/go.mod" "$pins/go.sum" | sha256sum | cut -c1-16)
  [ -e "$stamp" ] && return
  mkdir -p "$tools" && echo '  building the checkers, once'
  for pkg in mvdan.cc/gofumpt honnef.co/go/tools/cmd/staticcheck github.com/kisielk/errcheck \
    github.com/polyfloyd/go-errorlint golang.org/x/vuln/cmd/govulncheck; do
    (cd "$pins" && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$tools/${pkg##*/}" "$pkg") || return 1
  done
  rm -f "$tools"/.check.* && touch "$stamp"
}
build || exit 1

failed=0
report() { # name, output: one line if there is none, else the findings
  if [ -z "$2" ]; then
    printf '  ok    %s\n' "$1"
  else
    printf '  FAIL  %s\n' "$1"
    sed 's/^/          /' <<<"$2"
    failed=$((failed + 1))
  fi
}

# A finding is accepted on a line that says "//nolint:<tool> // reason", never for a file or a package.
unexcused() { # tool; reads file:line: findings
  local tool=$1 line file n
  while IFS= read -r line; do
    if [[ $line =~ ^([^:]+\.go):([0-9]+): ]]; then
      file=${BASH_REMATCH[1]} n=${BASH_REMATCH[2]}
      sed -n "${n}p" "$file" | grep -qE "//nolint:([a-z0-9]+,)*$tool(,[a-z0-9]+)* // ." && continue
    fi
    printf '%s\n' "$line"
  done
}

each() { # command: run in each module; its findings, with paths from the root
  local m p
  for m in "${modules[@]}"; do
    p=${m#.}; p=${p:+$p/}
    (cd "$m" && "$@" 2>&1) | grep -vE '^(#|go: downloading)' | sed -E "s#^(vet: )?($root/$p|\./)?#$p#"
  done
}

report gofumpt "$(git ls-files --cached --others --exclude-standard '*.go' | xargs -r ls 2>/dev/null | xargs -r "$tools/gofumpt" -l)"
report 'go vet' "$(each go vet ./...)"
report staticcheck "$(each "$tools/staticcheck" ./... | unexcused staticcheck)"
report errcheck "$(each "$tools/errcheck" -exclude "$pins/errcheck.txt" ./... | unexcused errcheck)"
report go-errorlint "$(each "$tools/go-errorlint" ./... | unexcused errorlint)"

# The copy has the same path depth and the same module cache, so that what is generated is the same.
generated() {
  local copy
  copy=$(mktemp -d)
  git ls-files --cached --others --exclude-standard | grep -v '^e2e/build/' | xargs -r ls -d 2>/dev/null | tar -cf - -T - | tar -xf - -C "$copy"
  (cd "$copy" && grep -rl --include='*.go' '^//go:generate' . | xargs -rn1 dirname | sort -u | while read -r d; do go generate "$d" 2>&1; done)
  git ls-files '*.go' | while read -r f; do
    if [ -e "$f" ] && head -c 200 "$f" | grep -q '^// Code generated' && ! cmp -s "$f" "$copy/$f"; then
      echo "$f is not what go generate makes: run it and commit"
    fi
  done
  rm -rf "$copy"
}
report 'generated code' "$(generated)"

# What go.mod says is what is imported: the lines that `go mod tidy` would change.
report 'go.mod' "$(each go mod tidy -diff | grep -E "^(e2e/)?[+-][^+-]")"

# Import rules, dependencies of each program, sizes, documentation.
report 'house rules' "$(go test -count=1 ./internal/house 2>&1 | grep -v '^ok ')"

vulnerabilities() { # 0: none known, 1: some, printed; 2: the database cannot be reached
  local m out
  for m in "${modules[@]}"; do
    out=$(cd "$m" && timeout 120 "$tools/govulncheck" ./... 2>&1) && continue
    grep -qE 'vuln\.go\.dev.*(dial|lookup|timeout|EOF|connect|refused|Forbidden|403|proxy)|fetching vulnerabilities|context deadline' <<<"$out" && return 2
    printf '%s\n' "$out"
  done
}
if out=$(vulnerabilities); then
  report govulncheck "$out"
else
  echo '  skip  govulncheck: its database (vuln.go.dev) cannot be reached from here'
fi

if [ "$failed" -gt 0 ]; then
  echo "  checks that fail: $failed"
  exit 1
fi
echo '  every check passes'

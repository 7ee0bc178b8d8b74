# Shared by ./run, ./test, bench/run and .ci/run; sourced, not run.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

say() { printf '%s\n' "==> $*"; }
die() {
  printf '%s\n' "error: $*" >&2
  exit 1
}

# What the VMM itself is built with.
build_packages=(libseccomp-dev nettle-dev pkg-config)

# need_packages NAME...: installs what is missing, and says what.
need_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  [ "$(id -u)" -eq 0 ] || die "missing packages: ${missing[*]}; install them with: sudo apt-get install ${missing[*]}"
  say "installing with apt: ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } \
    >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "apt could not install ${missing[*]} (log: $log)"
  fi
  rm -f "$log"
}

need_swift() {
  command -v swift >/dev/null || die "swift is not on PATH; install a Swift 6.3 toolchain from swift.org and add its usr/bin"
}

# build_vmm: the release binary, linked with a static standard library; sets $minivmm.
build_vmm() {
  need_swift
  need_packages "${build_packages[@]}"
  say "building minivmm (release; a few minutes the first time)"
  swift build -c release --product minivmm --static-swift-stdlib 2>&1 | progress_lines
  minivmm=$(swift build -c release --static-swift-stdlib --show-bin-path)/minivmm
}

# On a terminal the last line of a build's output is enough; into a file, its result.
progress_lines() {
  if [ -t 1 ]; then
    while IFS= read -r line; do printf '\r\033[K%s' "${line:0:100}"; [[ $line != *error:* ]] || printf '\n'; done
    printf '\n'
  else
    grep -E 'error:|warning:|Compiling|Build' | grep -vE '^\[[0-9]+/[0-9]+\] (Compiling|Emitting|Write|Wrapping)' || true
  fi
}

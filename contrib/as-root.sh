# shellcheck shell=bash
# Sourced by tests/run and .ci/run, in the project's directory.

# `as_root SCRIPT ARGUMENTS...`: goes on as root, by sudo where that is needed: Dovecot, Postfix and chroot want root.
as_root() {
  export GATEPOST_CACHE=${GATEPOST_CACHE:-/var/cache/gatepost}
  if ((EUID != 0)); then
    if ! command -v sudo >/dev/null; then
      echo "$1: the tests start Dovecot and Postfix, which need root: run it as root, or install sudo" >&2
      exit 1
    fi
    local keep=HOME,CARGO_HOME,RUSTUP_HOME,CARGO_TARGET_DIR,GATEPOST_CACHE,GATEPOST_BOOKWORM_TREE
    keep+=,CI,http_proxy,https_proxy,no_proxy
    exec sudo --preserve-env="$keep" "PATH=$PATH" "$PWD/$1" "${@:2}"
  fi
  if [[ ${SUDO_USER:-root} != root ]]; then
    # What root builds stays out of the clone and the home of the one who called sudo.
    export CARGO_HOME=${CARGO_HOME:-$GATEPOST_CACHE/cargo}
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$GATEPOST_CACHE/target}
  fi
  mkdir -p "$GATEPOST_CACHE"
}

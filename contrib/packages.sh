# shellcheck shell=bash
# Sourced by contrib/prepare and contrib/quickstart: installs Debian packages without setting up or starting a service.

# `install_missing NAME PACKAGE...`: those that are not installed yet; NAME is who says so.
install_missing() {
  # One at a time: a second run waits here and then finds everything in place.
  (
    flock 9
    mapfile -t missing < <(missing_of "${@:2}")
    if ((${#missing[@]} > 0)); then
      printf '%s: installing %s ...\n' "$1" "${missing[*]}" >&2
      apt_install "$1" "${missing[@]}"
    fi
  ) 9>/run/gatepost-packages.lock
}

missing_of() {
  local package
  for package in "$@"; do
    installed "$package" || printf '%s\n' "$package"
  done
}

installed() {
  [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

apt_install() {
  local log name=$1 package fresh=()
  shift
  log=$(mktemp)
  for package in "$@"; do
    case $package in
      slapd | postfix | nginx | haproxy | fail2ban) fresh+=("$package.service") ;;
      redis-server) fresh+=(redis-server.service) ;;
      dovecot-core) fresh+=(dovecot.service) ;;
      samba-ad-dc) fresh+=(samba-ad-dc.service smbd.service nmbd.service winbind.service) ;;
    esac
  done
  trap allow_services EXIT
  forbid_services
  # Neither package shall set up anything that we do not use: no directory in /var/lib/ldap, no /etc/postfix/main.cf.
  if [[ " $* " == *" slapd "* ]]; then
    echo "slapd slapd/no_configuration boolean true" | debconf-set-selections
  fi
  if [[ " $* " == *" postfix "* ]]; then
    echo "postfix postfix/main_mailer_type select No configuration" | debconf-set-selections
  fi
  # --no-remove: on a machine with another mail server or another Rust, apt shall refuse rather than replace it.
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends --no-remove "$@"; } \
    </dev/null >"$log" 2>&1 9>&-; then
    tail -n 15 -- "$log" >&2
    printf '%s: apt-get could not install %s; all it said is in %s\n' "$name" "$*" "$log" >&2
    exit 1
  fi
  rm -f -- "$log"
  # Those that were not here before shall not start at the next boot either.
  if command -v systemctl >/dev/null && ((${#fresh[@]} > 0)); then
    systemctl disable --quiet "${fresh[@]}" >/dev/null 2>&1 || true
  fi
}

# Debian starts a server when it is installed, unless /usr/sbin/policy-rc.d says 101. A machine may have its own.
POLICY=/usr/sbin/policy-rc.d

forbid_services() {
  [[ -e $POLICY.gatepost ]] && allow_services              # a run before this one was killed half way
  if [[ -e $POLICY ]]; then
    mv -- "$POLICY" "$POLICY.gatepost"
  else
    : >"$POLICY.gatepost"                                  # empty: there was none
  fi
  printf '#!/bin/sh\n# put here by Gatepost while it installs packages\nexit 101\n' >"$POLICY"
  chmod 755 "$POLICY"
}

allow_services() {
  [[ -e $POLICY.gatepost ]] || return 0
  if [[ -s $POLICY.gatepost ]]; then
    mv -f -- "$POLICY.gatepost" "$POLICY"
  else
    rm -f -- "$POLICY" "$POLICY.gatepost"
  fi
}

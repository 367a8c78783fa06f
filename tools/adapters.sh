#!/usr/bin/env bash
# Unpacks software Vulkan adapters under target/adapters and prints the exports that make them visible.
#
#   eval "$(tools/adapters.sh)"
#
# In:  a Debian machine (bookworm was tried) with apt, and its package mirror within reach.
# Out: stdout holds `export` lines and nothing else; progress and errors go to stderr.
#
#   target/adapters/lavapipe/     Mesa's CPU driver, from backports where the release's own is too old
#   target/adapters/swiftshader/  Chromium's CPU driver
#   target/adapters/loader/       the Vulkan loader, used where the machine has none that will do
#   target/adapters/lib/          shared libraries the drivers need and the machine lacks; often empty
#   target/adapters/run/          XDG_RUNTIME_DIR where none is set
#
# Drivers the machine has stay visible: VK_ADD_DRIVER_FILES adds to the loader's own search. A
# VK_DRIVER_FILES of the caller's hides everything else, these adapters too; that is left as it is.
#
# Nothing is installed and no root is needed: apt runs with lists, cache and sources of its own, all
# removed at the end. Two very different drivers are worth it: they disagree on subgroup width, limits,
# f16, denormals and tanh. Why not Debian's own lavapipe 22.3: it ends loops after 65 535 trips.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: eval "$(tools/adapters.sh [--force])"

Unpacks two software Vulkan adapters (Mesa lavapipe and SwiftShader) under target/adapters, without
root and without installing anything, and prints export lines for LD_LIBRARY_PATH (if needed),
VK_ADD_DRIVER_FILES and XDG_RUNTIME_DIR (if unset). A second run finds them there and is instant.

  --force   unpack again
  --help    this text

Where this cannot work (not Debian, no network) it says so in one line, exits with 1, and prints
`false`, so that the eval fails too. Any Vulkan driver will do instead: install one, and run
LSTM_REQUIRE_ADAPTER=1 tools/test.sh --system-adapters, which fails if it is not found.
TEXT
}

force=0
for argument in "$@"; do
    case $argument in
    --force) force=1 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "tools/adapters.sh: unknown option $argument; see --help" >&2; echo false; exit 2 ;;
    esac
done

# The caller may eval what was printed under another IFS or locale; ours are plain.
export LC_ALL=C
unset CDPATH
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=$root/target/adapters
work=$root/target/adapters.part

say() { printf 'adapters: %s\n' "$*" >&2; }

told=0
unpacking=0

give_up() {
    say "$*; instead, install any Vulkan driver (a GPU's own, or your system's lavapipe) and run LSTM_REQUIRE_ADAPTER=1 tools/test.sh --system-adapters"
    told=1
    exit 1
}

# Every failure makes the caller's eval fail: `eval "$(...)"` does not see the exit code of what it
# substitutes. Of a broken attempt only apt's log is kept.
finish() {
    local code=$?
    ((code != 0)) || return 0
    echo false
    ((told)) || say "stopped half-way (exit code $code)"
    ((!unpacking)) || rm -rf "$work"/{apt,debs,tree,new}
}
trap finish EXIT

# Every library is found, with every symbol. $1: the file, $2: folders to search first.
loads() {
    local report
    report=$(LD_LIBRARY_PATH=$2 ldd -r "$1" 2>&1) || return 1
    ! grep -q -e 'not found' -e 'undefined symbol' <<<"$report"
}

library_path() { printf '%s' "$1${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"; }

# A loader older than 1.3.207 does not know the variable that adds drivers.
system_loader_will_do() {
    local ldconfig path
    ldconfig=$(command -v ldconfig || echo /sbin/ldconfig)
    path=$("$ldconfig" -p 2>/dev/null | sed -n 's/^\tlibvulkan\.so\.1 (.*) => //p' | head -n 1)
    [[ -n $path && -r $path ]] && grep -q VK_ADD_DRIVER_FILES "$path"
}

# Still usable: made by this version of this file, and loadable with what the machine has today.
intact() {
    [[ -f $home/stamp && $(<"$home/stamp") == "$version" ]] &&
        loads "$home/lavapipe/libvulkan_lvp.so" "$(library_path "$home/lib")" &&
        loads "$home/swiftshader/libvk_swiftshader.so" "$(library_path "$home/lib")"
}

private_apt() { APT_CONFIG=$work/apt/apt.conf timeout 900 apt-get -qq "$@" >>"$work/apt.log" 2>&1; }

# apt's own reason, if it gave one; mirror addresses are noise in a one-line message.
apt_reason() {
    local reason
    reason=$(sed -n 's/^[EW]: //p' "$work/apt.log" | head -n 1 | sed 's#[a-z]*://[^ ]*#the mirror#g')
    printf '%s' "${reason:-see target/adapters.part/apt.log}"
}

# An apt that reads the machine's settings and installed packages, and writes only below $work.
set_up_apt() {
    local parts='' main='' index base security suite keyring signed=''
    eval "$(apt-config shell parts Dir::Etc::parts/d main Dir::Etc::main/f)"
    mkdir -p "$work"/apt/{conf.d,none.d,lists/partial,cache/archives/partial}

    # Copies, so that the hooks among them (which clean the system's cache, for one) can be cleared.
    [[ ! -d $parts ]] || find -L "$parts" -maxdepth 1 -type f -exec cp {} "$work/apt/conf.d/" \;
    [[ ! -f $main ]] || cp "$main" "$work/apt/conf.d/zy-main.conf"
    cat >"$work/apt/conf.d/zz-private.conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Invoke;
Dir::State "$work/apt";
Dir::State::Lists "$work/apt/lists";
Dir::State::status "${DPKG_ADMINDIR:-/var/lib/dpkg}/status";
Dir::Cache "$work/apt/cache";
Dir::Cache::archives "$work/apt/cache/archives";
Dir::Etc::sourcelist "$work/apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "$work/apt/none";
Dir::Etc::preferencesparts "$work/apt/none.d";
Dir::Log "$work/apt";
Debug::NoLocking "true";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
CONF
    printf 'Dir::Etc::parts "%s";\nDir::Etc::main "%s";\n' "$work/apt/conf.d" "$work/apt/none" >"$work/apt/apt.conf"

    # The machine's mirror, whichever of the two formats its sources have: the index files that an
    # update would fetch, computed without network and without lists.
    index=$(apt-get -o Debug::NoLocking=1 -o Dir::State::Lists="$work/apt/lists" --print-uris update 2>>"$work/apt.log" || true)
    base=$(sed -n "s#^'\(.*\)/dists/$codename/InRelease'.*#\1#p" <<<"$index" | head -n 1)
    security=$(sed -n "s#^'\(.*\)/dists/$codename-security/InRelease'.*#\1#p" <<<"$index" | head -n 1)
    [[ -n $base ]] || give_up "apt's sources name no mirror for Debian $codename"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [[ ! -r $keyring ]] || signed="[signed-by=$keyring] "
    {
        for suite in "$codename" ${mesa_suite:+"$mesa_suite"}; do
            echo "deb $signed$base $suite main"
        done
        [[ -z $security ]] || echo "deb $signed$security $codename-security main"
    } >"$work/apt/sources.list"
}

# $1: package file, then patterns; into $work/tree.
extract() {
    local package=$1
    shift
    dpkg-deb --fsys-tarfile "$package" | tar -C "$work/tree" -x --wildcards "$@" 2>>"$work/apt.log" || true
}

# The manifest names its library relative to itself, so the folder can be moved.
manifest() { sed 's#"library_path"[^,}]*"#"library_path": "./'"$2"'"#' "$1"; }

unpack() {
    local packages name file paths library
    unpacking=1
    rm -rf "$work"
    mkdir -p "$work"/{tree,new/loader,new/lib,new/lavapipe,new/swiftshader,debs}
    set_up_apt

    say "reading package lists"
    private_apt update || give_up "no package lists ($(apt_reason))"

    packages=("libvulkan1" "mesa-vulkan-drivers${mesa_suite:+/$mesa_suite}")
    if [[ -r /usr/lib/chromium/libvk_swiftshader.so && -r /usr/lib/chromium/vk_swiftshader_icd.json ]]; then
        mkdir -p "$work/tree/usr/lib/chromium"
        cp -L /usr/lib/chromium/{libvk_swiftshader.so,vk_swiftshader_icd.json} "$work/tree/usr/lib/chromium/"
        say "downloading ${packages[*]}; SwiftShader is here with Chromium"
        (cd "$work/debs" && private_apt download "${packages[@]}") || give_up "no download ($(apt_reason))"
    else
        say "downloading ${packages[*]} chromium-common"
        (cd "$work/debs" && private_apt download "${packages[@]}" chromium-common) || give_up "no download ($(apt_reason))"
    fi
    # Whatever else Mesa's driver needs on this very machine; installed packages are not fetched.
    private_apt install --download-only "${packages[@]}" || give_up "apt finds no way to satisfy ${packages[*]} ($(apt_reason))"

    say "unpacking"
    for file in "$work"/debs/*.deb; do
        case ${file##*/} in
        mesa-vulkan-drivers_*) extract "$file" '*/libvulkan_lvp.so' '*/icd.d/lvp_icd*.json' ;;
        chromium-common_*) extract "$file" '*/libvk_swiftshader.so' '*/vk_swiftshader_icd.json' ;;
        libvulkan1_*) extract "$file" '*/libvulkan.so.1*' ;;
        esac
    done
    cp -L "$(find "$work/tree" -name libvulkan.so.1)" "$work/new/loader/"
    cp "$(find "$work/tree" -name libvulkan_lvp.so)" "$work/new/lavapipe/"
    manifest "$(find "$work/tree" -name 'lvp_icd*.json')" libvulkan_lvp.so >"$work/new/lavapipe/lvp_icd.json"
    cp "$(find "$work/tree" -name libvk_swiftshader.so)" "$work/new/swiftshader/"
    manifest "$(find "$work/tree" -name vk_swiftshader_icd.json)" libvk_swiftshader.so >"$work/new/swiftshader/vk_swiftshader_icd.json"

    # Libraries beside the drivers shadow the machine's for every program run with these exports, so
    # there are none if the machine's own will do, and otherwise only those that are really loaded.
    for library in lavapipe/libvulkan_lvp.so swiftshader/libvk_swiftshader.so; do
        loads "$work/new/$library" "$(library_path "$work/new/lib")" && continue
        for file in "$work"/apt/cache/archives/*.deb; do
            case ${file##*/} in
            mesa-vulkan-drivers_* | libvulkan1_* | libc6_*) ;;
            *) extract "$file" '*.so.*' ;;
            esac
        done
        paths=$(find "$work/tree" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd :)
        LD_LIBRARY_PATH=$(library_path "$paths") ldd "$work/new/$library" |
            sed -n 's#^\t\([^ ]*\) => \(.*\) (0x[0-9a-f]*)$#\1 \2#p' |
            while read -r name file; do
                [[ $file != "$work/tree/"* ]] || cp -L "$file" "$work/new/lib/$name"
            done
        loads "$work/new/$library" "$(library_path "$work/new/lib")" ||
            give_up "${library#*/} does not load here ($(LD_LIBRARY_PATH=$(library_path "$work/new/lib") ldd -r "$work/new/$library" 2>&1 | grep -m 1 -e 'not found' -e 'undefined symbol' | tr -d '\t'))"
    done

    printf '%s\n' "$version" >"$work/new/stamp"
    rm -rf "$home"
    mv "$work/new" "$home"
    rm -rf "$work"
    say "ready, $(du -sh "$home" | cut -f 1) in target/adapters"
}

print_exports() {
    local path='' drivers="$home/lavapipe/lvp_icd.json:$home/swiftshader/vk_swiftshader_icd.json"
    system_loader_will_do || path=$home/loader
    [[ -z $(ls -A "$home/lib") ]] || path=${path:+$path:}$home/lib

    # Evaluated twice, nothing is listed twice.
    if [[ -n $path && :${LD_LIBRARY_PATH:-}: != *:$path:* ]]; then
        printf 'export LD_LIBRARY_PATH=%q\n' "$(library_path "$path")"
    fi
    if [[ :${VK_ADD_DRIVER_FILES:-}: != *:$drivers:* ]]; then
        printf 'export VK_ADD_DRIVER_FILES=%q\n' "$drivers${VK_ADD_DRIVER_FILES:+:$VK_ADD_DRIVER_FILES}"
    fi
    if [[ -z ${XDG_RUNTIME_DIR:-} ]]; then
        [[ -d $home/run ]] || mkdir -m 0700 "$home/run"
        printf 'export XDG_RUNTIME_DIR=%q\n' "$home/run"
    fi
}

[[ $root != *:* ]] || give_up "the path of this checkout has a colon, which driver lists cannot express"
version=$(cksum <"${BASH_SOURCE[0]}")
if ((force)) || ! intact; then
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release 2>/dev/null && [[ ${ID:-} == debian ]] && echo "${VERSION_CODENAME:-}") || true
    [[ -n $codename ]] || give_up "this is not a Debian system, so there is no package to unpack"
    for tool in apt-get apt-config dpkg-deb tar ldd flock timeout; do
        command -v "$tool" >/dev/null || give_up "$tool is missing"
    done
    mesa_suite=''
    [[ $codename != bookworm ]] || mesa_suite=bookworm-backports
    mkdir -p "$root/target"
    exec 9>"$root/target/adapters.lock"
    flock 9
    # Another run may have done it while this one waited.
    if ((force)) || ! intact; then
        unpack
    fi
    exec 9>&-
fi
print_exports

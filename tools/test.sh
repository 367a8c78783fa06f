#!/usr/bin/env bash
# Runs every test of the crate: host, ONNX's own node tests, GPU on software adapters, small feature sets, shaders in a
# browser.
#
# In:  a checkout with a Rust toolchain; Python for the node tests, Debian for the software adapters, Node.js and
#      Chromium for the browser. What is missing is skipped with one line, or fails, as the environment asks.
# Out: exit code 0 if every stage passed. The last line says so, or names those that failed.
#
# --help lists the stages, options and environment variables. All stages build the dev profile with all
# features, so that they share one set of compiled dependencies; only `features` differs, by intention.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: tools/test.sh [--quick] [--only STAGE] [--system-adapters]

stages, in this order
  host      unit tests, tests/host, tests/cli and doc tests; no adapter needed
  onnx      tests/onnx/node_tests.py and some random graphs against onnxruntime, with packages from PyPI in
            target/onnx-tests (needs Python with venv)
  gpu       tests/gpu on every adapter found: two software adapters that tools/adapters.sh unpacks
            under target/adapters, and those of the machine; then the demo, a tiny benchmark, two examples
  features  unit tests without default features; a check of the library with `gpu` alone
  shaders   every kernel compiled by headless Chromium (needs Node.js, npm and Chromium)

options
  --quick             the host stage only
  --only STAGE        one stage; may be repeated
  --system-adapters   use the machine's own Vulkan drivers only; unpack none
  --help              this text

environment
  LSTM_REQUIRE_ADAPTER=1  fail if the software adapters cannot be unpacked, or if no adapter is found
                          (otherwise a warning, and GPU tests that show as ignored)
  LSTM_EXPECT_ADAPTERS    parts of adapter names, comma-separated, each of which must be found (default: both
                          software adapters, once they are unpacked)
  LSTM_STRICT=1           fail if the browser check or the node tests cannot run (otherwise one line)
  LSTM_FULL=1             the tests' long lists of cases
  CHROMIUM                the browser of the shaders stage; else chromium from PATH
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

all_stages=(host onnx gpu features shaders)
stages=()
software_adapters=1
while (($# > 0)); do
    case $1 in
    --quick) stages+=(host) ;;
    --only)
        [[ " ${all_stages[*]} " == *" ${2:-} "* && -n ${2:-} ]] || {
            echo "tools/test.sh: --only takes one of: ${all_stages[*]}" >&2
            exit 2
        }
        stages+=("$2")
        shift
        ;;
    --system-adapters) software_adapters=0 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "tools/test.sh: unknown option $1; see --help" >&2; exit 2 ;;
    esac
    shift
done
((${#stages[@]} > 0)) || stages=("${all_stages[@]}")

say() { printf 'test.sh: %s\n' "$*" >&2; }

cargo_test() { cargo test --workspace --all-features --no-fail-fast "$@"; }

stage_host() {
    local code=0
    cargo_test --lib --bins --test host --test cli || code=1
    cargo_test --doc || code=1
    return $code
}

stage_onnx() {
    local python=target/onnx-tests/bin/python
    if ! install_onnx; then
        if [[ ${LSTM_STRICT:-} == 1 ]]; then
            say "no ONNX node tests without Python, its venv and pip, and LSTM_STRICT=1"
            return 1
        fi
        say "skipped: no ONNX node tests without Python, its venv and pip"
        return $skipped_code
    fi
    local code=0
    cargo build --quiet --all-features --bin lstm || return 1
    "$python" tests/onnx/node_tests.py target/debug/lstm || code=1
    "$python" tests/onnx/random_graphs.py target/debug/lstm --count 400 || code=1
    return $code
}

# Beside the packages lies a copy of the list that they were installed from.
install_onnx() {
    cmp --silent tests/onnx/requirements.txt target/onnx-tests/requirements.txt && return
    python3 -m venv target/onnx-tests &&
        target/onnx-tests/bin/python -m pip install --quiet --disable-pip-version-check -r tests/onnx/requirements.txt &&
        cp tests/onnx/requirements.txt target/onnx-tests/
}

stage_gpu() {
    if ((software_adapters)); then
        local exports
        if exports=$(tools/adapters.sh); then
            eval "$exports"
            export LSTM_EXPECT_ADAPTERS=${LSTM_EXPECT_ADAPTERS-llvmpipe,SwiftShader}
        elif [[ ${LSTM_REQUIRE_ADAPTER:-} == 1 ]]; then
            say "no software adapters, and LSTM_REQUIRE_ADAPTER=1"
            return 1
        else
            say "warning: no software adapters; going on with what the machine has"
        fi
    fi
    local code=0
    cargo_test --test gpu || code=1
    # The programs as a user runs them, on the adapters that were just unpacked.
    if [[ -n ${VK_ADD_DRIVER_FILES:-} ]]; then
        cargo run --quiet --all-features -- demo --device gpu || code=1
        cargo run --quiet --all-features --bin lstm-bench -- --group tiny --device cpu,gpu || code=1
        cargo run --quiet --all-features --example shared_device || code=1
        cargo run --quiet --all-features --example serve -- \
            --device gpu --seconds 3 --streams 16 --frame-ms 50 --lose-device-after 1.5 || code=1
    fi
    return $code
}

stage_features() {
    local code=0
    cargo test --no-default-features --lib --no-fail-fast || code=1
    cargo check --no-default-features --features gpu --lib || code=1
    return $code
}

stage_shaders() {
    local missing=() browser=${CHROMIUM:-}
    command -v node >/dev/null || missing+=(node)
    command -v npm >/dev/null || missing+=(npm)
    [[ -n $browser ]] || browser=$(command -v chromium chromium-browser google-chrome | head -n 1) || true
    [[ -n $browser ]] || missing+=("chromium (or CHROMIUM)")
    if ((${#missing[@]} > 0)); then
        local list
        list=$(printf '%s, ' "${missing[@]}")
        if [[ ${LSTM_STRICT:-} == 1 ]]; then
            say "no browser check without ${list%, }, and LSTM_STRICT=1"
            return 1
        fi
        say "skipped: no browser check without ${list%, }"
        return $skipped_code
    fi

    # Steps are joined: a caller's `||` switches `set -e` off in here.
    mkdir -p target &&
        cargo run --quiet --all-features --example dump_shaders >target/shaders.json &&
        install_browser_driver &&
        node tools/check_shaders/check.mjs target/shaders.json
}

# npm leaves a copy of the lock file in node_modules; an older one means an older install.
install_browser_driver() (
    cd tools/check_shaders
    [[ node_modules/.package-lock.json -nt package-lock.json ]] || npm ci --no-audit --no-fund --loglevel=error
)

skipped_code=77
failed=()
skipped=()
for stage in "${stages[@]}"; do
    printf '\n== %s\n' "$stage"
    SECONDS=0
    # A subshell each: what the adapters export stays in the gpu stage, away from the browser.
    code=0
    (stage_"$stage") || code=$?
    case $code in
    0) outcome=passed ;;
    "$skipped_code")
        outcome=skipped
        skipped+=("$stage")
        ;;
    *)
        outcome=FAILED
        failed+=("$stage")
        ;;
    esac
    printf '== %s: %s, %d s\n' "$stage" "$outcome" "$SECONDS"
done

echo
if ((${#failed[@]} > 0)); then
    echo "failed stages: ${failed[*]}"
    exit 1
fi
if ((${#skipped[@]} > 0)); then
    echo "skipped stages: ${skipped[*]}"
fi
if ((${#stages[@]} < ${#all_stages[@]})); then
    echo "stages asked for: ${stages[*]}"
fi
echo "all stages passed"

#!/usr/bin/env bash
# Every check that wants a real GPU, in one call of under ten minutes: adapters, all GPU tests, the demo, the benchmark.
#
# In:  a folder with the release binaries lstm and lstm-bench and the test binary gpu, built anywhere for this platform
#      (tools/gpu_check.sh --build FOLDER makes and strips them); a Vulkan loader and driver. Run from the repository root.
# Out: OUT/devices.json, OUT/tests.txt, OUT/demo.txt, OUT/bench.csv, OUT/bench.txt; exit code 0 if everything passed.
set -uo pipefail

usage() {
    cat <<'TEXT'
usage: tools/gpu_check.sh [--device NAME] FOLDER OUT     run the binaries in FOLDER, write results to OUT
       tools/gpu_check.sh --build FOLDER                 build the binaries into FOLDER

  --device NAME   as for lstm (default: gpu)
TEXT
}

build() {
    local folder=$1 test_binary
    mkdir -p "$folder"
    cargo build --release --all-features --bins || return 1
    test_binary=$(cargo test --release --all-features --test gpu --no-run --message-format=json 2>/dev/null |
        sed -n 's/.*"name":"gpu".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    [[ -n $test_binary ]] || { echo "tools/gpu_check.sh: the test binary was not built" >&2; return 1; }
    cp target/release/lstm target/release/lstm-bench "$folder/" && cp "$test_binary" "$folder/gpu" &&
        strip "$folder/lstm" "$folder/lstm-bench" "$folder/gpu"
}

device=gpu
case ${1:-} in
--build) [[ -n ${2:-} ]] || { usage >&2; exit 2; }; build "$2"; exit ;;
--device) device=${2:-}; shift 2 ;;
-h | --help) usage; exit 0 ;;
esac
[[ $# -eq 2 && -n $device ]] || { usage >&2; exit 2; }
folder=$1 out=$2
mkdir -p "$out"
failed=()

run() { # name, file, command ...
    local name=$1 file=$2
    shift 2
    echo "== $name"
    "$@" >"$out/$file" 2>&1 || failed+=("$name")
    tail -n 25 "$out/$file"
}

run devices devices.json "$folder/lstm" devices --json
run tests tests.txt env LSTM_REQUIRE_ADAPTER=1 "$folder/gpu"
run demo demo.txt "$folder/lstm" demo --device "$device"
run bench bench.txt "$folder/lstm-bench" --device "cpu,$device" --record "$out/bench.csv"

if ((${#failed[@]} > 0)); then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all checks passed"

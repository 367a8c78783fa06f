#!/usr/bin/env bash
# Every check that wants a real GPU, in one call of under ten minutes: adapters, all GPU tests, the demo, the benchmark with
# the adapter's limits and what `auto` would choose, and Burn and PyTorch's cuDNN side by side.
#
# In:  a folder with the release binaries lstm, lstm-bench and lstm-peers and the test binary gpu, built anywhere for this
#      platform (tools/gpu_check.sh --build FOLDER makes and strips them); a Vulkan loader and driver; for cuDNN a Python
#      with numpy, safetensors and torch. Run from the repository root.
# Out: OUT/devices.json, tests.txt, demo.txt, bench.json, bench.txt, sweep.json, sweep.svg, halves.json, peers.json and
#      peers.txt; exit code 0 if everything passed. What is not there to compare with is said and does not fail.
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
    (cd benches/peers/rust && cargo build --release --no-default-features --features burn --target-dir target) || return 1
    cp target/release/lstm target/release/lstm-bench benches/peers/rust/target/release/lstm-peers "$folder/" &&
        cp "$test_binary" "$folder/gpu" && strip "$folder/lstm" "$folder/lstm-bench" "$folder/lstm-peers" "$folder/gpu"
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
rm -f "$out"/{bench,sweep,halves}.json
bench() { "$folder/lstm-bench" --device "cpu,$device" --seconds 0.3 "$@"; }
run bench bench.txt bench --group shapes,anchors,padded --record "$out/bench.json"
run sweep sweep.txt bench --sweep hidden,batch,length --record "$out/sweep.json" --plot "$out/sweep.svg"
run halves halves.txt bench --group shapes --weights f16 --no-auto --record "$out/halves.json"

peers=wgpu-lstm:$device
[[ -x $folder/lstm-peers ]] && peers+=,burn || echo "no lstm-peers in $folder: nothing is compared with Burn"
if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    peers+=,cudnn-strict,cudnn-tf32,cudnn-f16
else
    echo "no PyTorch with CUDA: nothing is compared with cuDNN"
fi
if [[ $peers == *,* ]]; then
    run peers peers.txt python3 benches/peers/compare.py --worker "$folder/lstm-peers" --peers "$peers" --threads 2 \
        --cases W1,W2,W3,W4,W5,W6,W7,W10,W11,A1,A2,A3,A4 --rounds 3 --seconds 0.3 --record "$out/peers.json"
fi

if ((${#failed[@]} > 0)); then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all checks passed"

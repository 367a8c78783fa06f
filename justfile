# Everyday commands; `just` lists them. The work is in tools/test.sh and .ci/run, which need no just.

_default:
    @just --list --unsorted

# what CI runs: lints, docs, every test, nothing skipped
check:
    bash .ci/run

# every test; what this machine cannot run is skipped with one line
test *options:
    tools/test.sh {{ options }}

# every test, with the long lists of cases
full:
    LSTM_FULL=1 tools/test.sh

# unit, host and doc tests only
quick:
    tools/test.sh --quick

# compile every kernel in a browser
shaders:
    tools/test.sh --only shaders

# accept new plan texts and generated shaders; review the diff like code
snapshots:
    LSTM_UPDATE_SNAPSHOTS=1 cargo test --all-features --test host

# criterion benches of the parts; options go to criterion (`just bench -- pack`)
bench *options:
    cargo bench --all-features --bench parts {{ options }}

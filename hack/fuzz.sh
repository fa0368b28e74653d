#!/usr/bin/env bash
# Runs the fuzz targets of fuzz/Cargo.toml (or those that are named), three side by side, KAKOI_FUZZ_SECONDS each.
# What libFuzzer learns stays in target/fuzz/corpus; an input that broke a target stays in target/fuzz/crashes.
#   hack/fuzz.sh                      every target
#   hack/fuzz.sh spdy websocket       these
#   hack/fuzz.sh spdy -- FILE…        one target over these inputs, once each
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${KAKOI_FUZZ_SECONDS:-60}
width=3
out=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
# Bytes of the largest input, and seconds after which one input counts as a hang.
limits=(-max_len=32768 -timeout=20 -rss_limit_mb=2048)

targets=() inputs=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do targets+=("$1"); shift; done
[ "${1:-}" = -- ] && shift && inputs=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n '/^\[\[bin\]\]/,/^$/s/^name = "\(.*\)"/\1/p' fuzz/Cargo.toml)

# The stable compiler can count edges too; `--target` keeps the flags away from build scripts and derive macros.
host=$(rustc -vV | sed -n 's/^host: //p')
counters="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
RUSTFLAGS=$(echo $counters) ${CARGO:-cargo} build --quiet --locked --release --manifest-path fuzz/Cargo.toml \
    --target "$host" --target-dir "$out" "${bins[@]}"

if [ ${#inputs[@]} -gt 0 ]; then
    exec "$out/$host/release/${targets[0]}" "${limits[@]}" "${inputs[@]}"
fi

# One target, to its end; says in one line how it went, or where the broken input is and how to run it again.
fuzz() {
    local target=$1 log=$out/$1.log crashes=$out/crashes/$1
    mkdir -p "$out/corpus/$target" "$crashes"
    if "$out/$host/release/$target" "${limits[@]}" -max_total_time="$seconds" -print_final_stats=1 \
        -artifact_prefix="$crashes/" "$out/corpus/$target" "fuzz/seeds/$target" >"$log" 2>&1; then
        local runs edges
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        edges=$(sed -n 's/.* cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
        echo "fuzz: $target: $runs inputs, $edges edges"
        return 0
    fi
    echo "fuzz: $target FAILED; the end of $log:"
    grep -v '^#' "$log" | tail -n 25 | sed 's/^/    /'
    local input
    input=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    [ -z "$input" ] || echo "fuzz: again with: hack/fuzz.sh $target -- $input"
    return 1
}

running=()
trap 'kill "${running[@]}" 2>/dev/null || true' INT TERM
failed=0
for target in "${targets[@]}"; do
    [ -d "fuzz/seeds/$target" ] || { echo "fuzz: fuzz/seeds/$target is missing: commit a few small inputs" >&2; exit 1; }
    if [ "$(jobs -pr | wc -l)" -ge "$width" ]; then wait -n || failed=1; fi
    fuzz "$target" &
    running+=($!)
done
for job in "${running[@]}"; do wait "$job" || failed=1; done
exit $failed

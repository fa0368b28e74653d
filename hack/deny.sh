#!/usr/bin/env bash
# Licences, sources and forbidden crates of the dependency tree. Advisories need the network and are not asked here.
set -euo pipefail
cargo deny --version >/dev/null 2>&1 || cargo install --locked --quiet cargo-deny
cargo deny --log-level error check bans licenses sources
cargo deny --log-level error --manifest-path fuzz/Cargo.toml --config deny.toml check bans licenses sources

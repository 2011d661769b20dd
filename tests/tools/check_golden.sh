#!/usr/bin/env bash
# The files of data/golden and data/foreign are those of their manifests, byte by byte, and no
# others:  check_golden.sh
set -eu
cd "$(dirname "$0")/../../data/golden"
sums() {  # one line of the manifest per case
  sed -nE 's/^\{"name":"([^"]*)".*"sha256":"([0-9a-f]{64})".*/\2  \1.safetensors/p' manifest.json
}
[ "$(sums | wc -l)" -ge 40 ] || { echo "check-golden: fewer than 40 cases"; exit 1; }
sums | sha256sum --check --quiet --strict
diff <(sums | cut -c 67- | sort) <(ls -- *.safetensors | sort)
bytes=$(cat -- * | wc -c)
[ "$bytes" -le $((8 << 20)) ] || { echo "check-golden: $bytes bytes are more than 8 MiB"; exit 1; }
echo "check-golden: $(sums | wc -l) cases, $bytes bytes"

cd ../foreign
sums() {  # three lines of the manifest per model, one for each file
  sed -nE 's/^\{"name":"([^"]*)".*"sha256":\{([^}]*)\}.*/\1,\2/p' manifest.json |
    awk -F, '{ for (i = 2; i <= NF; ++i) { split($i, f, "\""); print f[4] "  " $1 "/" f[2] } }'
}
[ "$(sums | wc -l)" -ge 15 ] || { echo "check-golden: fewer than 15 foreign files"; exit 1; }
sums | sha256sum --check --quiet --strict
diff <(sums | cut -c 67- | sort) <(ls -- */* | sort)
bytes=$(cat -- manifest.json */* | wc -c)
[ "$bytes" -le 200000 ] || { echo "check-golden: $bytes foreign bytes are too many"; exit 1; }
echo "check-golden: $(sums | wc -l) foreign files, $bytes bytes"

#!/usr/bin/env bash
# Short runs of all training programs, and the pages that they leave: small, whole without anything
# else, well-formed, made anew by `report` with the same bytes; and opened in Chromium, where there
# is one: no word in its console, no request, no sideways scrolling on a phone.
set -u

folder=build/check_report
rm -rf "$folder"
mkdir -p "$folder"
fail() { echo "FAILED  report: $*"; exit 1; }

run() {
  local out=$1 program=$2
  shift 2
  ${RUN:-} "build/examples/$program" --out "$folder/$out" "$@" > "$folder/$out.txt" 2>&1 ||
    fail "$program ends with an error: $(tail -n 3 "$folder/$out.txt")"
}

# Ten images of CIFAR, each of one colour.
mkdir -p "$folder/ten"
image() {
  printf "$1"
  for shade in "$2" '\100' '\300'; do head -c 1024 /dev/zero | tr '\0' "$shade"; done
}
for i in 1 2 3 4 5; do
  { image '\001' '\000'; image '\011' '\377'; } > "$folder/ten/data_batch_$i.bin"
done
cp "$folder/ten/data_batch_1.bin" "$folder/ten/test_batch.bin"

run demo demo --validate --steps 24
run colour train_vision --data "$folder/ten" --batch 4 --steps 5
run text train_language --task toy --steps 24 --batch 16
run dense train_vision --no-experts --steps 3 --batch 16

# A page needs nothing else: no address to load, no reference but to bytes that it holds.
for out in demo colour text dense; do
  page=$folder/$out/report.html
  bytes=$(wc -c < "$page") || fail "$out has no page"
  [ "$bytes" -le $((2 << 20)) ] || fail "$page has $bytes bytes, more than 2 MiB"
  found=$(grep -noE 'https?:|//[a-z]|src=|<(link|img|iframe|object|embed|base)\b|url\(|@import' \
    "$page" | head -n 3)
  [ -z "$found" ] || fail "$page refers to something else: $found"
  found=$(grep -oE 'href="[^"]{0,21}' "$page" | grep -v '^href="data:image/bmp;base64')
  [ -z "$found" ] || fail "$page links to something else: $found"
  cp "$page" "$folder/$out.html"
  ${RUN:-} build/examples/report "$folder/$out" > "$folder/$out.report.txt" 2>&1 ||
    fail "report $out: $(cat "$folder/$out.report.txt")"
  cmp "$page" "$folder/$out.html" || fail "report makes another page of $out than the run itself"
done

# The digest of the script is the one that the page allows.
page=$folder/demo/report.html
if command -v openssl > /dev/null; then
  digest=$(awk '/^<script>|<script>$/ { sub(/.*<script>/, ""); inside = 1 }
      /<\/script>/ { sub(/<\/script>.*/, ""); printf "%s", $0; exit } inside' "$page" |
    openssl dgst -sha256 -binary | openssl base64)
  grep -qF "script-src 'sha256-$digest'" "$page" ||
    fail "script_digest in examples/support/report.hpp must be sha256-$digest"
else
  echo "skipped report: no openssl, so the digest of the script is not compared"
fi

# The page is XML, too.
for out in demo colour text dense; do
  if command -v xmllint > /dev/null; then
    xmllint --noout "$folder/$out/report.html" || fail "$out is not well-formed"
  elif command -v python3 > /dev/null; then
    python3 -c 'import sys, xml.etree.ElementTree as xml; xml.parse(sys.argv[1])' \
      "$folder/$out/report.html" || fail "$out is not well-formed"
  else
    echo "skipped report: neither xmllint nor python3, so it is not parsed"
  fi
done

# A browser opens it from a file, with a proxy that nobody listens to; then in a frame of 360
# pixels, where every figure is saved and every block of the first picture is stepped to.
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
if [ -n "$browser" ]; then
  open() {
    timeout 60 "$browser" --headless --no-sandbox --disable-gpu --no-first-run \
      --user-data-dir="$folder/browser" --proxy-server=127.0.0.1:9 --enable-logging=stderr \
      --virtual-time-budget=9000 --dump-dom "file://$PWD/$1" 2> "$1.log"
  }
  for out in demo colour text dense; do
    page=$folder/$out/report.html
    open "$page" > "$folder/$out.dom" || fail "the browser does not open $page"
    grep -q '</html>' "$folder/$out.dom" || fail "the browser does not show $page"
    grep -q CONSOLE "$page.log" && fail "$page: $(grep CONSOLE "$page.log" | head -n 3)"
    {
      printf '<!DOCTYPE html><p id="said"></p><iframe id="frame" width="360" height="800" srcdoc="'
      sed 's/&/\&amp;/g; s/"/\&quot;/g' "$page"
      cat << 'END'
"></iframe><script>
frame.onload = async () => {
  const page = frame.contentDocument, root = page.documentElement, wrong = [];
  if (root.scrollWidth > root.clientWidth) wrong.push(`${root.scrollWidth} pixels wide`);
  const links = page.querySelectorAll('a.save');
  for (const link of links) {
    link.addEventListener('click', event => event.preventDefault());
    link.click();
    const text = await (await fetch(link.href)).text();
    const svg = new DOMParser().parseFromString(text, 'image/svg+xml');
    if (svg.querySelector('parsererror') || !svg.querySelector('title')) wrong.push(link.download);
  }
  const blocks = page.querySelectorAll('.input.k0 > .pick[name=i0b0s]');
  blocks.forEach((block, i) => {
    block.click();
    const seen = [...page.querySelectorAll('.input.k0 .layer')]
        .filter(layer => layer.getBoundingClientRect().height > 0);
    if (seen.length !== 1 || !seen[0].classList.contains('b' + i)) wrong.push('block ' + i);
  });
  said.textContent = `in a frame: ${wrong.length ? wrong.join(', ') + ' wrong' : 'all right'}, ` +
      `${links.length} figures, ${blocks.length} blocks`;
};
</script>
END
    } > "$folder/$out.frame.html"
    open "$folder/$out.frame.html" > "$folder/$out.frame.dom"
    said=$(sed -n 's/.*<p id="said">\([^<]*\)<.*/\1/p' "$folder/$out.frame.dom" | head -n 1)
    case $said in
      *"all right, 0 figures"*) fail "$out: no figure can be saved" ;;
      *"all right"*) echo "ok      report: $out $said" ;;
      *) fail "$out: ${said:-the frame says nothing}" ;;
    esac
  done
else
  echo "skipped report: no chromium, so no browser has opened it"
fi
echo "ok      report: demo, train_vision, train_language; small, whole, the same when made anew"

/**
 * The report's style sheet. Colours of targets are Okabe and Ito's, darkened or lightened for contrast on their ground;
 * shapes repeat what colours say. Lengths of text follow the reader's own font size.
 */
export const REPORT_STYLE = `
:root {
  color-scheme: light dark;
  --ground: #f7f7f5; --card: #fff; --ink: #16191d; --muted: #586069; --line: #dfe1e4; --soft: #eff0ee; --stripe: #f2f3f1;
  --onnx: #0067a3; --qnn: #b84a00; --tflite: #00755a; --float: #70757c;
  --good: #00664f; --good-tint: #dff3ec; --warn: #7a5200; --warn-tint: #fbf0d5; --bad: #a12a06; --bad-tint: #fce6df; --none-tint: #e9ebee;
  --mark: #fde7b0; --mark-line: #b57600;
  --sans: Inter, ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: "JetBrains Mono", ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #101317; --card: #171b20; --ink: #e7eaee; --muted: #9aa3ad; --line: #2b3138; --soft: #1e2329; --stripe: #1b2026;
    --onnx: #62b8ec; --qnn: #f0935a; --tflite: #3cc4a2; --float: #8b939c;
    --good: #5fd3b3; --good-tint: #12332b; --warn: #ecc067; --warn-tint: #362a10; --bad: #ff9a7a; --bad-tint: #40190f; --none-tint: #262b32;
    --mark: #4a3a12; --mark-line: #e0ac46;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 var(--sans); font-variant-numeric: tabular-nums; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 72px; overflow-wrap: anywhere; }
h1, h2, h3, p, dl, dd, figure { margin: 0; }
h1 { font-size: 2rem; line-height: 1.15; font-weight: 650; letter-spacing: -.02em; }
h1 .for { color: var(--muted); font-weight: 400; }
h2 { font-size: 1.15rem; font-weight: 620; letter-spacing: -.01em; }
h3 { font-size: .95rem; font-weight: 600; }
section { margin-top: 44px; }
section > h2 { margin-bottom: 6px; }
code, pre, .form { font-family: var(--mono); font-size: .86em; font-variant-ligatures: none; overflow-wrap: anywhere; }
bdi, code { unicode-bidi: isolate; }
b { font-weight: 620; }
.defs { position: absolute; }
.kind { color: var(--muted); font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; margin-bottom: 6px; }
.about, figcaption { color: var(--muted); font-size: .88rem; max-width: 76ch; }
.about b { color: var(--ink); }
.from { color: var(--muted); }
.t-onnx { --c: var(--onnx); } .t-qnn { --c: var(--qnn); } .t-tflite { --c: var(--tflite); }
.marker { fill: var(--c); vertical-align: -1px; margin-right: 6px; flex: none; }
html:not(.js) .js-only { display: none; }

.facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 16px 0 20px; }
.facts dt, .figures dt, .where dt { color: var(--muted); font-size: .78rem; }
.facts dd { font-weight: 560; }
.verdict { display: flex; gap: 16px; align-items: flex-start; padding: 16px 20px; border-radius: 10px; background: var(--none-tint); }
.verdict .glyph { font-size: 1.5rem; line-height: 1.75rem; font-weight: 700; }
.sentence { font-size: 1.2rem; line-height: 1.45; }
.sentence::first-letter { text-transform: uppercase; }
.lead { margin-top: 4px; }
.close { --g: var(--good); --gt: var(--good-tint); } .loss { --g: var(--warn); --gt: var(--warn-tint); }
.degraded, .broken { --g: var(--bad); --gt: var(--bad-tint); } .unproven { --g: var(--muted); --gt: var(--none-tint); }
.verdict { background: var(--gt); } .verdict .glyph, .verdict strong { color: var(--g); }
.badge { margin-left: auto; padding: 2px 10px; border-radius: 99px; font-size: .82rem; font-weight: 600; letter-spacing: 0; color: var(--g); background: var(--gt); white-space: nowrap; }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 16px; margin-top: 20px; }
.card { background: var(--card); border: 1px solid var(--line); border-top: 3px solid var(--c); border-radius: 10px; padding: 16px 18px 18px; display: flex; flex-direction: column; }
.card h2 { display: flex; align-items: center; }
.headline { margin: 12px 0 14px; color: var(--muted); }
.headline .big { font-size: 2.1rem; line-height: 1; font-weight: 640; letter-spacing: -.03em; color: var(--ink); }
.headline .caption { display: block; margin-top: 5px; font-size: .82rem; }
.figures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px 12px; padding: 12px 0; border-top: 1px solid var(--line); }
.figures dd { font-weight: 560; white-space: nowrap; }
.where { padding: 12px 0; border-top: 1px solid var(--line); display: grid; gap: 4px; font-size: .88rem; }
.where > div { display: grid; grid-template-columns: max-content minmax(0, 1fr) max-content; gap: 10px; align-items: baseline; }
.where dt { font-size: inherit; } .where dd { text-align: right; } .where dd:last-child { font-weight: 600; white-space: nowrap; }
.proof, .note { color: var(--muted); font-size: .82rem; padding-top: 12px; border-top: 1px solid var(--line); }
.nb { white-space: nowrap; } .proof b { color: var(--ink); } .note { margin-top: 12px; }

.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 20px 40px; margin-top: 14px; }
.bars .row { display: grid; grid-template-columns: 70px minmax(0, 1fr) max-content; align-items: center; gap: 12px; margin-top: 4px; }
.pair .bars .row { grid-template-columns: 70px minmax(0, 1fr) 134px; }
.bars h3 { margin-bottom: 4px; }
.label { font-weight: 560; font-size: .9rem; white-space: nowrap; }
.value { font-size: .9rem; white-space: nowrap; }
.track { display: block; overflow: visible; }
.bar, .part { fill: var(--c); }
.whisker line { stroke: var(--ink); stroke-width: 1.2; }
.origin { stroke: var(--muted); stroke-width: 1; } .bound { stroke: var(--muted); stroke-width: 1; stroke-dasharray: 3 3; }
.nan { fill: var(--bad); font: 600 13px var(--sans); }
.axis { margin-top: 0 !important; } .axis svg { display: block; overflow: visible; } .axis text, .tick, .layer { fill: var(--muted); font: 11.5px var(--sans); }
.bars figcaption { margin-top: 4px; }
#sizes { margin-top: 10px; } #sizes .parts { margin: -4px 0 8px 82px; color: var(--muted); font-size: .82rem; }
.part { stroke: var(--ground); stroke-width: 1.5; } .part.p1 { fill-opacity: .68; } .part.p2 { fill-opacity: .45; } .part.p3 { fill-opacity: .28; } .row.float { --c: var(--float); } .row.float .part { fill-opacity: .5; }

.network .legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 12px 0 8px; font-size: .9rem; font-weight: 560; }
.legend label { cursor: pointer; display: inline-flex; align-items: center; } .legend input { accent-color: var(--c); margin: 0 7px 0 0; }
.plot { padding: 8px 48px 26px 40px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
#network { display: block; overflow: visible; }
.stretch.even { fill: none; } .stretch.odd { fill: var(--stripe); }
.grid { stroke: var(--line); stroke-width: 1; }
.under { fill: var(--bad); fill-opacity: .055; }
.threshold { stroke: var(--bad); stroke-width: 1.2; stroke-dasharray: 5 4; }
.threshold-label { fill: var(--bad); font: 600 11.5px var(--sans); }
.series .line { fill: none; stroke: var(--c); stroke-width: 1; stroke-opacity: .28; }
.point { fill: var(--c); fill-opacity: .7; }
#ring circle, .lowest use, .pointer { fill: none; stroke: var(--ink); stroke-width: 1.4; }
.lowest text { fill: var(--ink); font: 600 12px var(--mono); paint-order: stroke; stroke: var(--card); stroke-width: 4px; stroke-linejoin: round; }
.pointer { visibility: hidden; } .pointer.on { visibility: visible; }
.shape { transform: scale(var(--size, 1)); } .dense { --size: .62; } .dense .line { stroke-opacity: .13; }
.js .point { pointer-events: none; }
.network:has(#show-onnx:not(:checked)) .series.t-onnx, .network:has(#show-qnn:not(:checked)) .series.t-qnn, .network:has(#show-tflite:not(:checked)) .series.t-tflite { display: none; }
.readout { display: block; min-height: 1.6em; margin-top: 8px; font: .82rem var(--mono); overflow-wrap: anywhere; }

.worsts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 20px; margin-top: 14px; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .86rem; line-height: 1.35; }
caption { text-align: left; font-weight: 620; font-size: .95rem; padding-bottom: 6px; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: .78rem; border-bottom: 1px solid var(--line); padding: 4px 6px; white-space: nowrap; }
td { overflow-wrap: normal; padding: 6px; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
.n { text-align: right; white-space: nowrap; } td .from { font-size: .78em; } td small { color: var(--muted); white-space: nowrap; }
.low { color: var(--bad); font-weight: 620; }
th button { all: unset; cursor: pointer; } th button:hover { color: var(--ink); } th button:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; border-radius: 2px; }
th[aria-sort] button { color: var(--ink); } th[aria-sort="ascending"] button::after { content: " ↑"; } th[aria-sort="descending"] button::after { content: " ↓"; }
details { margin-top: 10px; } summary { cursor: pointer; font-weight: 560; }
details .scroll { margin-top: 10px; }
#plan-table td:nth-child(4) { min-width: 14ch; }
.filter { margin-top: 12px; font-size: .9rem; color: var(--muted); }
.filter input { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 5px 10px; width: min(100%, 300px); }

.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); gap: 16px; margin-top: 14px; }
.sample { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px 16px; }
.sample h3 { display: flex; align-items: center; } .sample small { margin-left: auto; color: var(--muted); font-weight: 400; font-size: .78rem; text-align: right; }
.text { margin-top: 8px; white-space: pre-wrap; overflow-wrap: anywhere; font-family: Charter, "Iowan Old Style", "Source Serif 4", Georgia, serif; font-size: 1rem; line-height: 1.5; unicode-bidi: isolate; }
.prompt { color: var(--muted); } .absent { color: var(--muted); margin-top: 8px; font-size: .88rem; }
mark { background: var(--mark); color: inherit; box-shadow: inset 0 -2px var(--mark-line); padding: 1px 0; }
.remarks { margin: 8px 0 0; padding-left: 1.2em; font-size: .9rem; overflow-wrap: anywhere; } .remarks li { margin-top: 3px; }
.command { position: relative; margin: 10px 0; }
pre span { display: inline-block; } pre { margin: 0; padding: 14px 16px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; white-space: pre-wrap; }
.command button { position: absolute; top: 8px; right: 8px; font: 500 .8rem var(--sans); color: var(--muted); background: var(--soft); border: 1px solid var(--line); border-radius: 6px; padding: 3px 10px; cursor: pointer; }
.js .command pre { padding-right: 84px; }
.legend-list { display: grid; grid-template-columns: max-content minmax(0, 76ch); gap: 6px 20px; margin-top: 10px; font-size: .88rem; color: var(--muted); }
.legend-list dt { color: var(--ink); font-weight: 560; } .legend-list ul { margin: 0; padding-left: 1.1em; } .legend-list b { color: var(--ink); }

.histogram { display: block; } .histogram .a { fill: var(--onnx); fill-opacity: .35; } .histogram .b { fill: none; stroke: var(--qnn); stroke-width: 1.4; }
.waterfall .legend { margin: 10px 0 4px; font-size: .9rem; color: var(--muted); } .key { display: inline-block; width: 12px; height: 12px; margin: 0 5px -1px 0; border-radius: 2px; } .key + bdi, .legend bdi { color: var(--ink); margin-right: 18px; }
.key.a, #waterfall .a { background: var(--onnx); fill: var(--onnx); } .key.b, #waterfall .b { background: var(--qnn); fill: var(--qnn); }

.s0 { --c: var(--onnx); } .s1 { --c: var(--qnn); } .s2 { --c: var(--tflite); } .s3 { --c: var(--float); } .s4 { --c: var(--bad); } .s5 { --c: var(--mark-line); }
.marks { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 12px; font-size: .9rem; font-weight: 560; }
.scatter .plot { padding: 14px 20px 30px 72px; margin-top: 8px; } .chart { display: block; overflow: visible; }
.spot { fill: var(--card); stroke: var(--c); stroke-width: 1.6; } .spot.filled { fill: var(--c); } .front { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 4 3; }
.chart a:focus { outline: none; } .chart a:focus .spot, .chart a:hover .spot { stroke: var(--ink); stroke-width: 2.6; }
tr.chosen td { background: var(--good-tint); } tr.unfit td { color: var(--muted); } tr:target td { background: var(--mark); }
#growth h3 { margin-top: 12px; } .timelines { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 220px), 1fr)); gap: 18px 24px; margin-top: 12px; }
.timeline svg { display: block; margin-top: 6px; border-bottom: 1px solid var(--line); } .timeline .from { font-size: .78rem; } .area { fill: var(--c); } .area.decode { fill-opacity: .55; }

@media (max-width: 560px) {
  main { padding: 24px 16px 48px; } h1 { font-size: 1.6rem; } section { margin-top: 36px; }
  .verdict { padding: 14px; gap: 10px; } .sentence { font-size: 1.05rem; } .facts { gap: 6px 22px; }
  .bars .row, .pair .bars .row { grid-template-columns: 62px minmax(0, 1fr) max-content; gap: 8px; } .value, .label { font-size: .82rem; }
  .pair .bars .row { grid-template-columns: 62px minmax(0, 1fr) 116px; }
  #sizes .parts { margin-left: 70px; }
  .plot { padding-left: 32px; padding-right: 40px; } .legend-list { grid-template-columns: 1fr; gap: 2px; } .legend-list dt { margin-top: 8px; }
}
@media print {
  :root { color-scheme: light; --ground: #fff; }
  @page { margin: 13mm; }
  body { font-size: 11px; } .cards { grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); } .worsts { grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); } main { max-width: none; padding: 0; }
  .card, .sample, figure, tr { break-inside: avoid; } h2, caption { break-after: avoid; } .filter, .command button, .readout { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
`;

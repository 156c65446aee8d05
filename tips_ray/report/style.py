"""CSS of a report: light and dark, wide and narrow."""

CSS = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fff; --text: #1d2026; --soft: #646a75; --line: #e2e2dc;
  --accent: #3f51c8; --raw: #3f51c855; --good: #16794a; --bad: #b3372c; --tint: #eef0fb; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1d2026; --text: #e7e8ea; --soft: #9aa1ac;
  --line: #31353d; --accent: #93a0ff; --raw: #93a0ff50; --good: #5fd39a; --bad: #ff8a7d; --tint: #262b40; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--text); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.05rem; font-weight: 600; margin: 0; color: var(--soft); }
h2 { font-size: 1.15rem; margin: 0 0 4px; }
h3 { font-size: .95rem; margin: 20px 0 8px; }
.headline { font-size: clamp(1.3rem, 3.4vw, 1.8rem); line-height: 1.3; font-weight: 650; margin: 6px 0 20px;
  text-wrap: balance; }
section, details.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 20px;
  margin-top: 18px; }
.hint { color: var(--soft); font-size: .88rem; margin: 0 0 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 12px 14px; }
section .tile { background: var(--page); }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 4px 28px; }
.facts h3 { margin-top: 0; }
dl { display: grid; grid-template-columns: minmax(90px, auto) 1fr; gap: 3px 14px; margin: 0 0 10px; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 18px 22px; }
figure { margin: 0; }
.chart figcaption { display: flex; justify-content: space-between; font-size: .88rem; font-weight: 600; gap: 8px; }
.chart .last { color: var(--accent); font-variant-numeric: tabular-nums; }
.chart svg { width: 100%; display: block; }
.chart text { fill: var(--soft); font-size: 11px; }
.grid { stroke: var(--line); } .mark { stroke: var(--soft); stroke-dasharray: 3 4; }
.level { stroke: var(--bad); stroke-dasharray: 6 4; }
.curve, .raw { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.raw { stroke: var(--raw); stroke-width: 1.2; }
img { display: block; width: 100%; height: auto; border-radius: 8px; background: var(--line); }
.pixels { image-rendering: pixelated; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(200px, 100%), 1fr)); gap: 18px; }
.gallery p { margin: 8px 0 0; font-size: .88rem; line-height: 1.4; }
.gallery .label, .label { color: var(--soft); font-size: .74rem; letter-spacing: .02em; display: block; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 14px 22px; }
.tasks { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); gap: 14px 22px; }
.tasks figcaption { font-size: .88rem; margin-bottom: 6px; }
.map { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 6px; }
.map .label { text-align: center; margin-top: 3px; }
.query { display: grid; grid-template-columns: minmax(180px, 1fr) minmax(0, 3fr); gap: 8px 18px; align-items: center;
  padding: 14px 0; border-top: 1px solid var(--line); }
.query blockquote { margin: 0; font-size: .92rem; }
.query > img { max-width: 150px; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(64px, 1fr)); gap: 8px; max-width: 640px; }
.hit { outline: 3px solid var(--good); outline-offset: 1px; }
ol { margin: 0; padding-left: 1.4em; font-size: .9rem; } li { margin: 2px 0; }
li.right { color: var(--good); font-weight: 600; } li.right::after { content: " \\2713"; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; } tr:last-child td { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-right: 4px;
  padding-left: 10px; }
.better { color: var(--good); font-weight: 600; } .worse { color: var(--bad); font-weight: 600; }
.watch { color: var(--accent); font-weight: 600; } td .hint { margin: 4px 0 0; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; margin: 8px 0 0;
  overflow-wrap: normal; }
summary { cursor: pointer; font-weight: 600; }
details details, section details { margin-top: 16px; }
@media (max-width: 560px) { main { padding: 16px 12px 40px; } section, details.card { padding: 16px 14px; }
  .query { grid-template-columns: minmax(0, 1fr); } .row { grid-template-columns: repeat(5, 1fr); gap: 6px; }
  th.number { white-space: normal; } td, th { padding-right: 8px; font-size: .85rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tile b { font-size: 1.2rem; }
  .gallery { grid-template-columns: 1fr 1fr; gap: 14px 12px; } .gallery p { font-size: .8rem; } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""

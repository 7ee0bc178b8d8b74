"""The page: one file, no scripts, nothing loaded from elsewhere."""

from html import escape

from reporting import svg

LOOK = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;max-width:920px;margin:2rem auto;padding:0 1rem;
 color:#24292f;background:#fff}
h1{font-size:1.7rem;margin-bottom:.2rem}h2{margin-top:2.6rem;border-bottom:1px solid #d0d7de;padding-bottom:.2rem}
p,li{max-width:72ch}.dim{color:#57606a}figure{margin:1.2rem 0}figcaption{color:#57606a;font-size:13.5px;max-width:80ch}
svg.mv{max-width:100%;height:auto;margin-right:8px}
table{border-collapse:collapse;font-size:13.5px;width:100%}th,td{text-align:left;padding:3px 8px;border-bottom:1px solid #d8dee4;
 vertical-align:top}td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
code,pre{font:12.5px ui-monospace,Menlo,Consolas,monospace}pre{overflow-x:auto;background:#f6f8fa;padding:.7rem}
.miss{color:#cf222e;font-weight:600}.met{color:#1a7f37;font-weight:600}
.absent{border-left:4px solid #bf8700;padding:.4rem .8rem;background:#fff8c5;color:#24292f}summary{cursor:pointer}
@media (prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}.dim,figcaption{color:#9da7b3}pre{background:#161b22}
h2,th,td{border-color:#30363d}.miss{color:#ff7b72}.met{color:#3fb950}a{color:#58a6ff}}
"""


def verdict(row):
    if row["value"] is None or not row["target"]:
        return ""
    return '<span class="met">met</span>' if row["met"] else '<span class="miss">MISSED</span>'


def signs(target):
    return (target or "").replace(">=", "≥").replace("<=", "≤")


def table(rows):
    lines = ["<table><tr><th>figure</th><th>value</th><th>target</th><th></th><th>runs</th><th>from</th></tr>"]
    for row in rows:
        value = "—" if row["value"] is None else f"{svg.number(row['value'])} {row['unit']}"
        runs = "" if row["value"] is None else str(row["runs"])
        lines.append(f"<tr><td><code>{row['name']}</code></td><td class=n>{value}</td><td class=n>{signs(row['target'])}</td>"
                     f"<td>{verdict(row)}</td><td class=n>{runs}</td><td class=dim>{escape(row['against'])}</td></tr>")
    return "".join(lines) + "</table>"


def section(module, entry):
    lines = [f'<h2 id="{module.NAME}">{module.TITLE}</h2>', f"<p>{module.TEXT}</p>"]
    if entry is None:
        return lines + ['<p class="absent">Not measured in this run.</p>']
    for why, words in (("unavailable", "Not available here: "), ("failed", "Failed: ")):
        if why in entry:
            return lines + [f'<p class="absent">{words}{escape(entry[why])}</p>']
    speed = ", quick" if entry["quick"] else ""
    of = escape(entry.get("commit") or "unknown")
    lines.append(f'<p class="dim">Measured {entry["measured"]}{speed}, commit {of}; took {entry["seconds"]} s.</p>')
    for drawing, caption in module.plots(entry["data"]):
        lines.append(f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>")
    rows = entry["figures"]
    aimed = [row for row in rows if row["target"]]
    if aimed:
        lines.append(table(aimed))
    rest = [row for row in rows if not row["target"]]
    if rest:
        lines.append(f"<details><summary>{len(rest)} figures without a target</summary>{table(rest)}</details>")
    return lines


def html(report, modules):
    rows = [row for name in modules for row in report["sections"].get(name, {}).get("figures", ()) if row["target"]]
    known = [row for row in rows if row["value"] is not None]
    missed = [row for row in known if not row["met"]]
    absent = len(rows) - len(known)
    lines = [
        "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8"><title>minivmm: what protection costs</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<style>{LOOK}{svg.STYLE}</style></head><body>",
        "<h1>minivmm: what protection costs</h1>",
        f'<p class="dim">{report["made"]}. '
        "Made by <code>bench/report</code>; the numbers are in <code>report.json</code> beside this page.</p>",
        f"<p>Of {len(known)} targets that were measured, {len(known) - len(missed)} are met and "
        f'<span class="miss">{len(missed)} missed</span>{f"; {absent} could not be measured" if absent else ""}.</p>']
    if rows:
        lines.append(table(rows))
    lines.append('<p class="dim">Ratios compare runs of one round, taken in turn; of several rounds, it is the median ratio. '
                 "Modes: <i>none</i> replicates but holds nothing back; <i>remus</i> holds replies until the next checkpoint; "
                 "<i>colo</i> until both guests have said the same; <i>colo++</i> lets replies to reads leave as soon as the "
                 'secondary has the request. <a href="#machine">What this machine does to all of it</a> is at the end.</p>')
    for name, module in modules.items():
        lines += section(module, report["sections"].get(name))
    lines.append('<h2 id="machine">The machine</h2><ul>')
    lines += [f"<li>{escape(each)}</li>" for each in report["host"]["sentences"]]
    lines.append(f"</ul><pre>{escape(chr(10).join(report['host']['doctor']))}</pre></body></html>")
    return "\n".join(lines) + "\n"

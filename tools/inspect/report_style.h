/* SPDX-License-Identifier: MIT */
/*
 * report_style.h - the style sheet of the page that `report` writes.
 *
 * Colours are variables with a light and a dark value; the kinds of pages and the parts of bars
 * have the same colours everywhere. One column below 720 pixels, where columns of class "wide" are
 * left out and tables that are still too wide scroll by themselves.
 */
#ifndef INSPECT_REPORT_STYLE_H
#define INSPECT_REPORT_STYLE_H

static const char report_style[] =
    ":root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#5b6676;"
    "--line:#dde2e9;--good:#1a7f4b;--bad:#c0322b;--used:#2f6fdb;--part:#8fb3f0;--large:#7a4fc4;"
    "--cached:#d9932a;--meta:#5f6b7a;--stored:#c3cad4;--hole:#eceff3}\n"
    "@media(prefers-color-scheme:dark){:root{--ground:#12161c;--card:#1b212a;--ink:#e4e9f0;"
    "--soft:#98a4b4;--line:#2e3744;--good:#4cc38a;--bad:#ff7b72;--used:#5b95f5;--part:#2f4f86;"
    "--large:#a585ea;--cached:#e0a548;--meta:#8692a3;--stored:#465162;--hole:#262e39}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0;background:var(--ground);color:var(--ink);"
    "font:15px/1.45 system-ui,-apple-system,\"Segoe UI\",sans-serif}\n"
    "main{max-width:1120px;margin:0 auto;padding:24px 20px 48px}\n"
    "h1{font-size:24px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}\n"
    "h2{font-size:17px;margin:0 0 4px}\n"
    "p{margin:0 0 10px}.soft,.note{color:var(--soft)}.note{font-size:13.5px}\n"
    ".verdict{display:inline-block;font-weight:600;padding:3px 12px;border-radius:999px;"
    "color:var(--card);background:var(--good);margin:10px 0 6px}\n"
    ".verdict.bad{background:var(--bad)}\n"
    ".grid{display:grid;grid-template-columns:1fr 1fr;gap:16px;align-items:start}\n"
    ".card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px;"
    "min-width:0}\n"
    ".all{grid-column:1/-1}\n"
    ".tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:10px;"
    "margin:16px 0}\n"
    ".tile{background:var(--card);border:1px solid var(--line);border-radius:10px;"
    "padding:10px 14px}\n"
    ".tile b{display:block;font-size:19px;font-weight:600;white-space:nowrap}\n"
    ".tile span{color:var(--soft);font-size:13px}\n"
    "svg{display:block;width:100%;height:auto;border-radius:4px;margin:8px 0}\n"
    ".used{fill:var(--used);background:var(--used)}.part{fill:var(--part);background:var(--part)}\n"
    ".large{fill:var(--large);background:var(--large)}"
    ".meta{fill:var(--meta);background:var(--meta)}\n"
    ".stored{fill:var(--stored);background:var(--stored)}"
    ".hole{fill:var(--hole);background:var(--hole)}\n"
    ".cached{fill:var(--cached);background:var(--cached)}\n"
    ".legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13.5px;list-style:none;"
    "margin:8px 0 0;padding:0}\n"
    ".legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;"
    "vertical-align:-1px;border:1px solid var(--line)}\n"
    ".scroll{overflow-x:auto}\n"
    "table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}\n"
    "th{text-align:right;color:var(--soft);font-weight:500;font-size:13px}\n"
    "td{text-align:right}th,td{padding:3px 0 3px 12px;border-bottom:1px solid var(--line);"
    "white-space:nowrap}\n"
    "th:first-child,td:first-child{padding-left:0}tr:last-child td{border-bottom:0}\n"
    ".text{text-align:left}td.free{white-space:normal;overflow-wrap:anywhere}\n"
    "td.bar{width:38%;min-width:90px}\n"
    ".stack{display:flex;height:11px;border-radius:3px;overflow:hidden;background:var(--hole)}\n"
    ".dead{color:var(--bad)}.alive{color:var(--good)}\n"
    "dl{display:grid;grid-template-columns:auto 1fr;gap:3px 16px;margin:0}\n"
    "dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}\n"
    "details summary{cursor:pointer;color:var(--soft)}\n"
    "@media(max-width:720px){main{padding:16px 12px 32px}.grid{grid-template-columns:1fr}"
    ".wide{display:none}h1{font-size:20px}.card{padding:12px}"
    ".tiles{grid-template-columns:1fr 1fr;gap:8px}td.bar{width:30%;min-width:70px}}\n";

#endif

"""How the pages look, and the few things that only a script can do: all within the page itself."""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--panel:#f6f8fa;--text:#1f2328;--quiet:#59636e;
--line:#d1d9e0;--soft:#818b981f;--good:#1a7f37;--bad:#cf222e;--bar:#0969da;--memory:#9a6700;
--warn:#9a6700;--goodbg:#dafbe1;--badbg:#ffebe9;--warnbg:#fff8c5}
@media(prefers-color-scheme:dark){:root{--page:#0d1117;--panel:#151b23;--text:#f0f6fc;
--quiet:#9198a1;--line:#3d444d;--soft:#656c7633;--good:#3fb950;--bad:#f85149;--bar:#4493f8;
--memory:#d29922;--warn:#d29922;--goodbg:#12261e;--badbg:#25171c;--warnbg:#272115}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:78rem;padding:1.25rem;
background:var(--page);color:var(--text);overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .6rem}
h1 small{font-weight:400;color:var(--quiet);font-size:1rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}summary h2,summary h3{display:inline;font-size:1.05rem}
summary h3{font-size:.95rem}
p{margin:.35rem 0}ul{margin:.35rem 0;padding-left:1.2rem}li{margin:.15rem 0}
a{color:var(--bar)}code{background:var(--soft);padding:.05em .3em;border-radius:4px;font-size:.92em}
.ok{color:var(--good)}.bad{color:var(--bad);font-weight:600}
.warn{color:var(--warn);font-weight:600}
.dim{color:var(--quiet)}
.verdict{border:1px solid;border-left-width:6px;border-radius:6px;
padding:.6rem .9rem;margin:.6rem 0}
.verdict b{text-transform:uppercase;letter-spacing:.03em;margin-right:.5em}
.verdict.ok{background:var(--goodbg);border-color:var(--good)}
.verdict.bad{background:var(--badbg);border-color:var(--bad)}
.verdict.warn{background:var(--warnbg);border-color:var(--warn)}
.verdict{color:var(--text)!important;font-weight:400!important}
.tiles{display:grid;gap:.6rem;margin:.8rem 0;
grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr))}
.tiles>div{background:var(--panel);border:1px solid var(--line);border-radius:6px;
padding:.5rem .75rem;min-width:0}
.tiles b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums;line-height:1.3}
.tiles span{color:var(--quiet);font-size:.85rem}
details{border:1px solid var(--line);border-radius:6px;margin:.6rem 0;padding:0 .9rem}
details[open]{padding-bottom:.7rem}details details{background:var(--page)}
summary{cursor:pointer;padding:.55rem 0}
summary:focus-visible,button:focus-visible,svg:focus-visible{outline:2px solid var(--bar);
outline-offset:2px}
.wide{overflow-x:auto;max-width:100%}table{border-collapse:collapse;width:100%}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;
white-space:nowrap;overflow-wrap:normal}
tbody tr:last-child>*{border-bottom:0}th{color:var(--quiet);font-weight:600;font-size:.87rem}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.t{white-space:normal;min-width:15rem;overflow-wrap:anywhere}
td.w{white-space:normal;min-width:10rem;overflow-wrap:anywhere}
.pinned{border-collapse:separate;border-spacing:0}
.pinned th:first-child,.pinned td:first-child{position:sticky;left:0;background:var(--page)}
th button{all:unset;cursor:pointer}th button:focus-visible{outline:2px solid var(--bar)}
th[aria-sort=ascending] button::after{content:" ▲"}
th[aria-sort=descending] button::after{content:" ▼"}
.tools{display:flex;flex-wrap:wrap;gap:.4rem;margin:.6rem 0}.tools[hidden]{display:none}
.tools button,.tools input{font:inherit;color:inherit;background:var(--panel);
border:1px solid var(--line);border-radius:999px;padding:.25rem .8rem;min-height:2.2rem}
.tools button{cursor:pointer}.tools button[aria-pressed=true]{border-color:var(--bar);
box-shadow:inset 0 0 0 1px var(--bar)}.tools input{flex:1 1 10rem;min-width:0}
svg{display:block;max-width:100%;height:auto}

.bars{display:grid;grid-template-columns:fit-content(42%) 1fr;gap:.15rem .6rem;font-size:.85rem}
.bars>span{text-align:right;overflow-wrap:anywhere}.bars>div{position:relative}
.bars i{display:inline-block;vertical-align:-.1em;height:.95em;margin-right:.4rem;
width:calc((var(--full))*var(--share));background:var(--of);border-radius:2px}
.marked>div::after{content:"";position:absolute;top:-.15rem;bottom:0;
border-left:2px solid var(--bad);left:calc((var(--full))*var(--mark))}
svg.small{width:100%}svg.tiny{max-width:none}
svg text{fill:currentColor;font:12px system-ui}
.chosen{stroke:var(--text);stroke-width:2}
output{display:block;white-space:pre-line;background:var(--panel);border:1px solid var(--line);
border-radius:6px;padding:.4rem .7rem;margin:.4rem 0;min-height:4.9em}output:empty{display:none}
.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(20rem,100%),1fr))}
.cards>div{min-width:0}.key{display:inline-block;margin-right:1em}
.key::before{content:"";display:inline-block;width:.8em;height:.8em;border-radius:50%;
background:var(--of);margin-right:.35em}
@media(max-width:30rem){body{padding:.8rem;font-size:14px}details{padding:0 .65rem}
h1{font-size:1.25rem}td.t{min-width:12rem}
.pinned td.t{white-space:nowrap;max-width:16rem;overflow:hidden;text-overflow:ellipsis}
.stack thead{display:none}.stack tr{display:flex;flex-wrap:wrap;gap:.1rem 1rem;padding:.45rem 0;
border-bottom:1px solid var(--line)}.stack tr:last-child{border-bottom:0}
.stack td,.stack td.n,.stack td.t{border:0;padding:0;white-space:normal;text-align:left;min-width:0;
overflow-wrap:anywhere}.stack td:empty{display:none}
.stack td:first-child,.stack td.t{flex:1 0 100%}.stack td:first-child{font-weight:600}
.stack td:not(:first-child):not(.t)::before{content:attr(data-head) " ";color:var(--quiet)}
.stack svg{margin-top:.2rem}}
@media print{details:not([open])>*{display:block}.tools{display:none}}
"""

SCRIPT = """
const each = (query, act, within = document) => within.querySelectorAll(query).forEach(act);
each('.tools', tools => {
  const rows = document.querySelectorAll('[data-state]');
  const find = tools.querySelector('input');
  let state = '';
  const show = () => rows.forEach(row => {
    const words = row.dataset.name.toLowerCase();
    row.hidden = (state && row.dataset.state !== state)
      || !words.includes(find.value.trim().toLowerCase());
  });
  each('button[data-only]', button => button.addEventListener('click', () => {
    state = button.dataset.only;
    each('button[data-only]', b => b.setAttribute('aria-pressed', String(b === button)), tools);
    show();
  }), tools);
  each('button[data-open]', button => button.addEventListener('click', () =>
    each('details.pair', pair => { pair.open = button.dataset.open === 'yes'; })), tools);
  find.addEventListener('input', show);
  tools.hidden = false;
});
each('table.sort', table => each('th', (head, at) => {
  const button = document.createElement('button');
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') === 'ascending';
    each('th', other => other.removeAttribute('aria-sort'), table);
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const key = row => row.cells[at].dataset.key ?? row.cells[at].textContent;
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)], [n, m] = [Number(x), Number(y)];
      const less = x !== '' && y !== '' && !isNaN(n) && !isNaN(m)
        ? (n < m ? -1 : n > m ? 1 : 0) : x.localeCompare(y);
      return down ? -less : less;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  });
}, table));
each('svg.probe', drawing => {
  const dots = [...drawing.querySelectorAll('circle')];
  const said = drawing.closest('.wide').nextElementSibling;
  let at = -1;
  const choose = index => {
    each('.chosen', dot => dot.classList.remove('chosen'), drawing);
    at = Math.max(0, Math.min(dots.length - 1, index));
    dots[at].classList.add('chosen');
    said.textContent = dots[at].querySelector('title').textContent;
  };
  drawing.addEventListener('click', event => {
    const away = dot => {
      const box = dot.getBoundingClientRect();
      return Math.hypot(box.x + box.width / 2 - event.clientX,
        box.y + box.height / 2 - event.clientY);
    };
    choose(dots.reduce((best, dot, i) => away(dot) < away(dots[best]) ? i : best, 0));
  });
  drawing.addEventListener('keydown', event => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (step) { event.preventDefault(); choose(at + step); }
  });
});
const reveal = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target) { target.open = true; target.scrollIntoView(); }
};
addEventListener('hashchange', reveal);
reveal();
"""

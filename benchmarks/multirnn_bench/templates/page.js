"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Light or dark: the system's choice, until the reader makes one.
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = document.querySelector(".theme");
  const nameTheme = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; nameTheme(); });
  nameTheme();

  // The view: one mode, one number of threads.
  const body = document.querySelector(".rows tbody");
  const rows = all("tr.row", body).map(row => ({ row, detail: row.nextElementSibling, text: row.textContent.toLowerCase() }));
  const byId = new Map(rows.map(one => [one.row.dataset.id, one]));
  const chosen = { mode: null, threads: null };
  const search = document.querySelector("#search"), status = document.querySelector("#status"), every = document.querySelector("#every");
  const off = new Set();

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { row, detail, text } of rows) {
      const data = row.dataset;
      const here = every.checked || (data.mode === chosen.mode && data.threads === chosen.threads);
      const shown = here && (!status.value || data.status === status.value) && !off.has(data.contender) && words.every(word => text.includes(word));
      row.hidden = !shown;
      if (!shown) detail.classList.remove("open");
      count += shown;
    }
    document.querySelector(".count").textContent = `${count} of ${rows.length} rows`;
  };

  const views = all(".view");
  const choose = (what, value) => {
    chosen[what] = value;
    for (const button of all(`[data-${what}-choice]`)) button.setAttribute("aria-pressed", String(button.dataset[`${what}Choice`] === value));
    for (const view of views) view.classList.toggle("shown", view.dataset.mode === chosen.mode && view.dataset.threads === chosen.threads);
    document.querySelector(".absent").hidden = views.some(view => view.classList.contains("shown"));
    filter();
  };
  for (const what of ["mode", "threads"])
    for (const button of all(`[data-${what}-choice]`)) button.addEventListener("click", () => choose(what, button.dataset[`${what}Choice`]));
  if (views.length) { choose("mode", views[0].dataset.mode); choose("threads", views[0].dataset.threads); }

  // The legend: pointing at a contender highlights it, pressing hides it.
  for (const chip of all(".chip")) {
    const number = chip.dataset.contender, own = `.c.c${number}`;
    const light = on => {
      document.body.classList.toggle("focus", on);
      for (const one of all(own)) one.classList.toggle("lit", on);
    };
    chip.addEventListener("pointerenter", () => { if (!off.has(number)) light(true); });
    chip.addEventListener("pointerleave", () => light(false));
    chip.addEventListener("click", () => {
      if (!off.delete(number)) off.add(number);
      light(false);
      chip.classList.toggle("off", off.has(number));
      chip.setAttribute("aria-pressed", String(off.has(number)));
      for (const one of all(own)) if (!one.closest(".chip")) one.classList.toggle("hidden-contender", off.has(number));
      filter();
    });
  }

  // Pointing at a mark shows its row in a tip, pressing goes there.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");
  document.body.append(tip);
  const tell = (id, x, y) => {
    const cells = byId.get(id).row.cells, data = byId.get(id).row.dataset;
    const lines = data.status === "timed"
      ? [`${cells[5].textContent} a call, ${cells[7].textContent} of the limit`, `${cells[6].textContent} times the best time`, `error ${cells[8].textContent}`]
      : [`${data.status}: ${cells[13].textContent}`];
    tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: cells[3].textContent }), cells[0].textContent, ...lines.flatMap(line => [document.createElement("br"), line]));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(6, Math.min(x + 14, innerWidth - box.width - 6))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18}px`;
  };
  document.addEventListener("pointerover", event => {
    const marked = event.target.closest("[data-row]");
    if (marked) tell(marked.dataset.row, event.clientX, event.clientY); else tip.hidden = true;
  });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  document.addEventListener("click", event => {
    const marked = event.target.closest("[data-row]");
    if (!marked) return;
    const { row, detail } = byId.get(marked.dataset.row);
    if (row.hidden) { search.value = status.value = ""; filter(); }
    detail.classList.add("open");
    row.classList.add("flash");
    setTimeout(() => row.classList.remove("flash"), 2500);
    row.scrollIntoView({ block: "center", behavior: "smooth" });
  });

  // The table of all rows: filter, sort by a column, open.
  for (const input of [search, status, every]) input.addEventListener("input", filter);
  body.addEventListener("click", event => {
    const row = event.target.closest("tr.row");
    if (row) row.nextElementSibling.classList.toggle("open");
  });
  for (const [place, head] of all(".rows th").entries())
    head.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of all(".rows th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = one => one.row.cells[place].dataset.value ?? one.row.cells[place].textContent;
      const number = head.classList.contains("right");
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (number && (x === "" || y === "")) return (x === "") - (y === "");  // rows without a number stay last
        return (down ? -1 : 1) * (number ? x - y : x.localeCompare(y));
      });
      body.append(...rows.flatMap(one => [one.row, one.detail]));
    });
})();

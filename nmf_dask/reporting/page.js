"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const byShare = data.topics.map((_, t) => t).sort((a, b) => data.topics[b].share - data.topics[a].share || a - b);
  const percent = (x) => (100 * x).toLocaleString("en", { maximumSignificantDigits: 3 }) + " %";
  let selected = byShare[0];
  let term = null;

  // Text goes in as text alone: nothing from the corpus is ever parsed as HTML.
  function make(name, attributes, ...children) {
    const svg = ["svg", "circle", "text", "rect", "title"].includes(name);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }
  const width = (share) => {
    const bar = make("div");
    bar.style.width = 100 * share + "%";
    return bar;
  };

  // Sievert and Shirley, "LDAvis" (2014), equation 1.
  function relevant(topic, lambda) {
    const value = (i) => Math.log(topic.p[i]) - (1 - lambda) * Math.log(data.p[topic.terms[i]]);
    return topic.terms.map((_, i) => [value(i), i]).sort((a, b) => b[0] - a[0] || topic.terms[a[1]] - topic.terms[b[1]])
      .slice(0, data.n_terms).map(([, i]) => i);
  }
  const lambda = () => Number(at("lambda").value);
  function name(t) {
    const topic = data.topics[t];
    const first = topic.terms.map((_, i) => i).sort((a, b) => topic.p[b] - topic.p[a] || a - b).slice(0, 6);
    return `#${t} · ${percent(topic.share)} · ${first.map((i) => data.terms[topic.terms[i]]).join(", ") || "no terms"}`;
  }
  const names = data.topics.map((_, t) => name(t));

  function drawList() {
    at("topic").append(...byShare.map((t) => make("option", { value: t }, names[t])));
    at("topic").addEventListener("change", () => select(Number(at("topic").value)));
  }

  function drawMap() {
    const size = 600, map = at("map"), shown = byShare.filter((t) => data.topics[t].x !== null);
    const middle = (axis) => {
      const all = shown.map((t) => data.topics[t][axis]);
      return [(Math.min(...all) + Math.max(...all)) / 2, Math.max(...all) - Math.min(...all)];
    };
    const [[mx, wide], [my, high]] = [middle("x"), middle("y")], scale = (size - 120) / Math.max(1e-9, wide, high);
    for (const t of shown) {
      const topic = data.topics[t], x = size / 2 + (topic.x - mx) * scale, y = size / 2 - (topic.y - my) * scale;
      const r = Math.max(4, Math.sqrt((topic.share * 0.12 * size * size) / Math.PI));
      const circle = make("circle", { id: `circle-${t}`, cx: x, cy: y, r, role: "option", "aria-label": names[t],
        "aria-selected": false }, make("title", {}, names[t]));
      circle.addEventListener("click", () => select(t));
      map.append(circle, ...(r > 9 ? [make("text", { x, y, "aria-hidden": true }, String(t))] : []));
    }
    map.addEventListener("keydown", (event) => {
      const here = shown.indexOf(selected), last = shown.length - 1;
      const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: last };
      if (!(event.key in to)) return;
      event.preventDefault();
      if (last >= 0) select(shown[Math.min(last, Math.max(0, to[event.key]))]);
    });
  }

  function drawTerms() {
    const topic = data.topics[selected], shown = relevant(topic, lambda());
    const inside = (i) => topic.share * topic.p[i], most = Math.max(1e-30, ...shown.map((i) => data.p[topic.terms[i]]));
    at("terms").tBodies[0].replaceChildren(...shown.map((i) => {
      const word = data.terms[topic.terms[i]], all = data.p[topic.terms[i]];
      const button = make("button", { type: "button", "aria-pressed": i === term }, word);
      button.addEventListener("click", () => { term = i; drawTerms(); drawContext(); at("terms").querySelector(
        "[aria-pressed=true]").focus(); });
      const bar = make("td", { class: "bar", "aria-hidden": true }, width(inside(i) / most), width(all / most));
      bar.firstChild.className = "in";
      bar.lastChild.className = "all";
      return make("tr", {}, make("td", {}, button), bar, make("td", { class: "number" }, percent(topic.p[i])),
        make("td", { class: "number" }, percent(Math.min(1, inside(i) / all))));
    }));
    at("lambda-value").textContent = lambda().toFixed(1);
  }

  function drawDocuments() {
    const topic = data.topics[selected];
    at("documents").replaceChildren(...topic.documents.map((one) => make("li", {}, make("strong", {}, one.id),
      make("span", { class: "dim" }, ` weight ${one.weight}, ${percent(one.share)} of the document`),
      ...(one.text ? [make("p", { class: "text" }, ...one.text.map((part) => typeof part === "string" ? part
        : make("mark", { title: data.terms[topic.terms[part[1]]] }, part[0])))] : []))));
    if (!topic.documents.length) at("documents").append(make("li", {}, "no document has a weight in this topic"));
  }

  function contexts(topic, i) {
    const found = [], side = (parts) => parts.map((part) => typeof part === "string" ? part : part[0]).join("");
    for (const one of topic.documents) (one.text || []).forEach((part, place) => {
      if (typeof part === "string" || part[1] !== i) return;
      const before = side(one.text.slice(0, place)), after = side(one.text.slice(place + 1));
      found.push([one.id, before.length > 60 ? "…" + before.slice(-60) : before, part[0],
        after.length > 60 ? after.slice(0, 60) + "…" : after]);
    });
    return found;
  }

  function drawContext() {
    if (!data.with_texts) return;
    const topic = data.topics[selected];
    if (term === null) term = relevant(topic, lambda()).find((i) => contexts(topic, i).length) ?? null;
    const found = term === null ? [] : contexts(topic, term);
    at("context-of").textContent = term === null ? "" : `“${data.terms[topic.terms[term]]}”, ${found.length} times in these documents`;
    at("context").replaceChildren(...found.slice(0, 12).map(([id, before, word, after]) =>
      make("li", { class: "text" }, before, make("mark", {}, word), `${after} `, make("span", { class: "dim" }, id))));
  }

  function drawGroups() {
    at("groups").replaceChildren(...data.groups.map((group) => {
      const share = group.share[selected], most = Math.max(1e-9, ...share);
      const caption = group.kind === "date" ? `Share of topic #${selected} over time (${group.name})`
        : `Share of topic #${selected} by ${group.name}`;
      const rows = group.names.map((one, i) => [one, share[i]]);
      if (group.kind === "label") rows.sort((a, b) => b[1] - a[1]);
      const table = make("table", { class: "stages", "aria-label": caption }, make("tbody", {},
        ...rows.map(([one, s]) => make("tr", {}, make("th", { scope: "row" }, one),
          make("td", { class: "bar", "aria-hidden": true }, width(s / most)), make("td", { class: "number" }, percent(s))))));
      const section = make("section", {}, make("h3", {}, caption));
      if (group.kind === "date") {
        const step = 600 / rows.length, chart = make("svg", { viewBox: "0 0 600 150", class: "columns", role: "img",
          "aria-label": `${caption}; the numbers are in the table that follows` });
        rows.forEach(([one, s], i) => chart.append(make("rect", { x: i * step, width: Math.max(1, step - 1),
          y: 15 + 115 * (1 - s / most), height: (115 * s) / most }, make("title", {}, `${one}: ${percent(s)}`))));
        chart.append(make("text", { x: 0, y: 146 }, rows[0][0]), make("text", { x: 0, y: 10 }, `${percent(most)} at most`),
          make("text", { x: 600, y: 146, "text-anchor": "end" }, rows[rows.length - 1][0]));
        section.append(chart, make("details", {}, make("summary", {}, "The numbers"), make("div", { class: "scroll" }, table)));
      } else section.append(make("div", { class: "scroll" }, table));
      return section;
    }));
  }

  // One canvas a topic, a pixel a group: thousands of cells cost no elements. What it shows stands beside it in words.
  function strip(shares, most) {
    const canvas = make("canvas", { width: shares.length, height: 1, "aria-hidden": true }), pen = canvas.getContext("2d");
    shares.forEach((s, i) => { pen.fillStyle = `rgba(20, 60, 110, ${Math.sqrt((s ?? 0) / most)})`; pen.fillRect(i, 0, 1, 1); });
    return canvas;
  }

  function drawAll() {
    at("all-groups").append(...data.groups.map((group) => {
      const most = Math.max(1e-9, ...group.share.map((row) => Math.max(...row)));
      const caption = `Shares of all topics ${group.kind === "date" ? "over time" : "by"} ${group.name}`;
      const rows = byShare.map((t) => {
        const share = group.share[t], peak = share.indexOf(Math.max(...share));
        const button = make("button", { type: "button", "data-topic": t, tabindex: -1 }, names[t]);
        button.addEventListener("click", () => select(t));
        return make("tr", {}, make("th", { scope: "row" }, button), make("td", { class: "strip" }, strip(share, most)),
          make("td", {}, `${percent(share[peak])} in ${group.names[peak]}`));
      });
      const head = make("tr", {}, make("th", { scope: "col" }, "topic"), make("th", { scope: "col" },
        `${group.names[0]} to ${group.names[group.names.length - 1]}`), make("th", { scope: "col" }, "most"));
      const table = make("table", { class: "heat", "aria-label": caption }, make("thead", {}, head), make("tbody", {}, ...rows));
      table.addEventListener("keydown", (event) => {
        const here = byShare.indexOf(selected), last = byShare.length - 1;
        const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: last };
        if (!(event.key in to)) return;
        event.preventDefault();
        select(byShare[Math.min(last, Math.max(0, to[event.key]))]);
        table.querySelector("[aria-pressed=true]").focus();
      });
      return make("section", {}, make("h3", {}, caption), make("p", { class: "dim" }, `The darkest is ${percent(most)}; `
        + `${group.names.length} columns, left to right. A click or the arrow keys select a topic.`), make("div", { class: "scroll" }, table));
    }));
  }

  function markAll(t, on) {
    for (const button of document.querySelectorAll(`#all-groups [data-topic="${t}"]`)) {
      button.setAttribute("aria-pressed", on);
      button.setAttribute("tabindex", on ? 0 : -1);
      button.closest("tr").classList.toggle("selected", on);
    }
  }

  function select(t) {
    markAll(selected, false);
    markAll(t, true);
    const before = document.getElementById(`circle-${selected}`), now = document.getElementById(`circle-${t}`);
    if (before) before.setAttribute("aria-selected", false);
    if (now) { now.setAttribute("aria-selected", true); at("map").setAttribute("aria-activedescendant", now.id); }
    selected = t;
    term = null;
    at("topic").value = t;
    at("said").textContent = `Topic ${names[t]}`;
    drawDocuments();
    drawContext();
    drawTerms();
    drawGroups();
  }

  drawList();
  drawMap();
  drawAll();
  at("lambda").addEventListener("input", () => { drawTerms(); });
  select(selected);
  document.documentElement.dataset.ready = "true";
})();

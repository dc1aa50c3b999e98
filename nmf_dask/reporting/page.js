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
    const svg = ["svg", "g", "circle", "text", "rect", "path", "title"].includes(name);
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
  const firstTerms = data.topics.map((topic) => topic.terms.map((_, i) => i)
    .sort((a, b) => topic.p[b] - topic.p[a] || a - b).slice(0, 6).map((i) => data.terms[topic.terms[i]]));
  const names = data.topics.map((topic, t) =>
    `#${t} · ${percent(topic.share)} · ${firstTerms[t].join(", ") || "no terms"}`);

  // Topics of which a term holds what is typed, of a hundredth of the first one's weight at least; all, where nothing is.
  function drawList() {
    const asked = at("find").value.trim().toLowerCase();
    const holds = ({ terms, p }, least = Math.max(...p) / 100) =>
      terms.some((j, i) => p[i] >= least && data.terms[j].toLowerCase().includes(asked));
    const found = asked ? byShare.filter((t) => holds(data.topics[t])) : byShare, there = new Set(found);
    at("topic").replaceChildren(...found.map((t) => make("option", { value: t }, names[t])));
    at("topic").value = selected;
    at("found").textContent = asked ? `${found.length} of ${byShare.length} topics` : "";
    for (const t of byShare) document.getElementById(`circle-${t}`)?.classList.toggle("off", !there.has(t));
  }

  // Over all circles: the number of a topic in its middle and its first term below, the largest topics first, and none
  // that would stand on another. Widths are reckoned from characters: nothing has to be laid out to be measured.
  function labels(places, size) {
    const taken = [], group = make("g", { "aria-hidden": true });
    const put = (text, kind, x, y) => {
      const half = 4 * [...text].length + 2, box = [x - half, x + half, y - 7, y + 7];
      if (!text || box[0] < 0 || box[1] > size || box[3] > size) return;
      if (taken.some((one) => box[0] < one[1] && one[0] < box[1] && box[2] < one[3] && one[2] < box[3])) return;
      taken.push(box);
      group.append(make("text", { x, y, class: kind }, text));
    };
    const large = places.filter(([, , , r]) => r > 9);
    for (const [t, x, y] of large) put(String(t), "number", x, y);
    for (const [t, x, y, r] of large) put(firstTerms[t][0] ?? "", "term", x, y + Math.max(16, r - 8));
    return group;
  }

  function drawMap() {
    const size = 600, map = at("map"), shown = byShare.filter((t) => data.topics[t].x !== null);
    const middle = (axis) => {
      const all = shown.map((t) => data.topics[t][axis]);
      return [(Math.min(...all) + Math.max(...all)) / 2, Math.max(...all) - Math.min(...all)];
    };
    const [[mx, wide], [my, high]] = [middle("x"), middle("y")], scale = (size - 120) / Math.max(1e-9, wide, high);
    const places = [];
    for (const t of shown) {
      const topic = data.topics[t], x = size / 2 + (topic.x - mx) * scale, y = size / 2 - (topic.y - my) * scale;
      const r = Math.max(4, Math.sqrt((topic.share * 0.1 * size * size) / Math.PI));
      const circle = make("circle", { id: `circle-${t}`, cx: x, cy: y, r, role: "option", "aria-label": names[t],
        "aria-selected": false }, make("title", {}, names[t]));
      circle.addEventListener("click", () => select(t));
      map.append(circle);
      places.push([t, x, y, r]);
    }
    // The selected one is seen, whatever lies on it.
    map.append(labels(places, size), make("circle", { id: "ring", "aria-hidden": true }));
    map.addEventListener("keydown", (event) => {
      const here = shown.indexOf(selected), last = shown.length - 1;
      const on = here + 1, back = here - 1;
      const to = { ArrowRight: on, ArrowDown: on, ArrowLeft: back, ArrowUp: back, Home: 0, End: last };
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

  // Some characters beside a word, cut between words where there are spaces.
  const AROUND = 32;
  function before(text) {
    const all = [...text], cut = all.slice(-AROUND).join(""), space = cut.indexOf(" ");
    return all.length <= AROUND ? text : "…" + (space < 0 ? cut : cut.slice(space + 1));
  }
  function after(text) {
    const all = [...text], cut = all.slice(0, AROUND).join(""), space = cut.lastIndexOf(" ");
    return all.length <= AROUND ? text : (space < 0 ? cut : cut.slice(0, space)) + "…";
  }

  function contexts(topic, i) {
    const found = [], side = (parts) => parts.map((part) => typeof part === "string" ? part : part[0]).join("");
    topic.documents.forEach((one, number) => (one.text || []).forEach((part, place) => {
      if (typeof part === "string" || part[1] !== i) return;
      const [left, right] = [one.text.slice(0, place), one.text.slice(place + 1)].map(side);
      found.push([number + 1, before(left), part[0], after(right)]);
    }));
    return found;
  }

  function drawContext() {
    if (!data.with_texts) return;
    const topic = data.topics[selected];
    if (term === null) term = relevant(topic, lambda()).find((i) => contexts(topic, i).length) ?? null;
    const found = term === null ? [] : contexts(topic, term), shown = found.slice(0, 15);
    const times = found.length === 1 ? "once" : `${found.length} times`;
    const first = shown.length < found.length ? `, of which the first ${shown.length}` : "";
    at("context-of").textContent = term === null ? "No term of the topic is in these documents."
      : `“${data.terms[topic.terms[term]]}” stands ${times} in these documents${first}`;
    at("context").tBodies[0].replaceChildren(...shown.map(([number, left, word, right]) => make("tr", {},
      make("th", { scope: "row", class: "dim", "aria-label": `document ${number}` }, `${number}.`),
      make("td", { class: "before" }, left), make("td", { class: "word" }, make("mark", {}, word)),
      make("td", {}, right))));
  }

  const none = "no documents";
  const told = (share) => share === null ? none : percent(share);

  // A bar a point of time; where no document is, none.
  function columns(rows, most, caption) {
    const step = 545 / rows.length, chart = make("svg", { viewBox: "0 0 600 170", class: "columns", role: "img",
      "aria-label": `${caption}; the numbers are in the table that follows` });
    rows.forEach(([one, s], i) => chart.append(make("rect", { x: 55 + i * step, width: Math.max(1, step - 1),
      y: 10 + 130 * (1 - s / most), height: (130 * s) / most }, make("title", {}, `${one}: ${told(s)}`))));
    const say = (text, x, y, anchor) => chart.append(make("text", { x, y, "text-anchor": anchor }, text));
    chart.append(make("path", { d: "M53 10V141H600" }));
    say(percent(most), 49, 18, "end");
    say("0", 49, 141, "end");
    say(rows[0][0], 55, 160, "start");
    if (rows.length > 1) say(rows[rows.length - 1][0], 600, 160, "end");
    return chart;
  }

  function drawGroups() {
    at("groups").replaceChildren(...data.groups.map((group) => {
      const share = group.share[selected], most = Math.max(1e-9, ...share);
      const caption = group.kind === "date" ? `Share of topic #${selected} over time (${group.name})`
        : `Share of topic #${selected} by ${group.name}`;
      const rows = group.names.map((one, i) => [one, share[i]]);
      if (group.kind === "label") rows.sort((a, b) => b[1] - a[1]);
      const table = make("table", { class: "stages", "aria-label": caption }, make("tbody", {},
        ...rows.map(([one, s]) => make("tr", {}, make("th", { scope: "row" }, one), make("td",
          { class: "bar", "aria-hidden": true }, width(s / most)), make("td", { class: "number" }, told(s))))));
      const numbers = make("div", { class: "scroll" }, table);
      const shown = group.kind === "label" ? [numbers]
        : [columns(rows, most, caption), make("details", {}, make("summary", {}, "The numbers"), numbers)];
      return make("section", {}, make("h2", {}, caption), ...shown);
    }));
  }

  // One canvas a topic, a pixel a group: thousands of cells cost no elements. What it shows stands beside it in words.
  function strip(shares, most) {
    const canvas = make("canvas", { width: shares.length, height: 1, "aria-hidden": true });
    const pen = canvas.getContext("2d");
    shares.forEach((s, i) => {
      pen.fillStyle = `rgba(20, 60, 110, ${Math.sqrt((s ?? 0) / most)})`;
      pen.fillRect(i, 0, 1, 1);
    });
    return canvas;
  }

  // Over the strips: every label upright, or the first point of time and the last.
  function heads(group) {
    const all = group.kind === "label" && group.names.length > 1, last = group.names.length - 1;
    const shown = all ? group.names : [group.names[0], ...(last ? [group.names[last]] : [])];
    const spans = shown.map((one) => make("span", { title: one }, one));
    if (!all && last) spans[1].style.textAlign = "right";
    return make("div", { class: all ? "heads upright" : "heads" }, ...spans);
  }

  // What stands under the mouse.
  function point(event, group, share) {
    const box = event.target.getBoundingClientRect(), along = (event.clientX - box.left) / box.width;
    const here = Math.min(share.length - 1, Math.max(0, Math.floor(along * share.length)));
    event.target.title = `${group.names[here]}: ${told(share[here])}`;
  }

  function drawAll() {
    at("all-groups").append(...data.groups.map((group) => {
      const most = Math.max(1e-9, ...group.share.map((row) => Math.max(...row)));
      const caption = group.kind === "date" ? `Shares of all topics over time (${group.name})`
        : `Shares of all topics by ${group.name}`;
      const rows = byShare.map((t) => {
        const share = group.share[t], peak = share.reduce((best, s, i) => (s > share[best] ? i : best), 0);
        const button = make("button", { type: "button", "data-topic": t, tabindex: -1, title: names[t] }, names[t]);
        button.addEventListener("click", () => select(t));
        const canvas = strip(share, most), said = `${told(share[peak])} in ${group.names[peak]}`;
        canvas.addEventListener("mousemove", (event) => point(event, group, share));
        return make("tr", {}, make("th", { scope: "row", class: "name" }, button), make("td", {}, canvas),
          make("td", { class: "most", title: said }, said));
      });
      const head = make("tr", {}, make("th", { scope: "col", class: "name" }, "topic"),
        make("th", { scope: "col" }, heads(group)), make("th", { scope: "col", class: "most" }, "most"));
      const table = make("table", { class: "heat", "aria-label": caption },
        make("thead", {}, head), make("tbody", {}, ...rows));
      table.addEventListener("keydown", (event) => {
        const here = byShare.indexOf(selected), last = byShare.length - 1;
        const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: last };
        if (!(event.key in to)) return;
        event.preventDefault();
        select(byShare[Math.min(last, Math.max(0, to[event.key]))]);
        table.querySelector("[aria-pressed=true]").focus();
      });
      const help = `The darkest is ${percent(most)}. A click or the arrow keys select a topic.`;
      return make("section", {}, make("h2", {}, caption), make("p", { class: "dim" }, help),
        make("div", { class: "scroll" }, table));
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
    if (now) {
      now.setAttribute("aria-selected", true);
      at("map").setAttribute("aria-activedescendant", now.id);
    }
    for (const one of ["cx", "cy", "r"]) at("ring").setAttribute(one, now ? now.getAttribute(one) : 0);
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
  at("topic").addEventListener("change", () => select(Number(at("topic").value)));
  at("find").addEventListener("input", drawList);
  at("lambda").addEventListener("input", () => { drawTerms(); });
  select(selected);
  document.documentElement.dataset.ready = "true";
})();

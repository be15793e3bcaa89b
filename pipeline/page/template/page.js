const data = JSON.parse(document.getElementById("data").textContent);
const { figures, images, names } = data;
const facts = figures.gallery.images;
const $ = (id) => document.getElementById(id);
const count = new Intl.NumberFormat("en");
const percent = (share) => `${share > 0 && share < 0.0005 ? (100 * share).toPrecision(1) : (100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

/* --- what the figures say of categories --- */

const classes = new Map(figures.classes.map((one) => [one.category_id, one]));
const grey = [150, 150, 150];
const colours = new Map(
  figures.classes.map((one) => [one.category_id, [1, 3, 5].map((at) => parseInt(one.colour.slice(at, at + 2), 16))]),
);
const look = {
  opacity: 0.55,
  outlines: true,
  hidden: new Set(),
  colour: (category) => colours.get(category) ?? grey,
  isThing: (category) => classes.get(category)?.isthing ?? false,
};
const nameOf = (category) => names[category] ?? `category ${category}`;
const shortName = (key) => key.replace(/\/+$/, "").split(/[/#]/).pop() || key;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function swatch(category) {
  const made = element("i", look.isThing(category) ? "swatch" : "swatch stuff");
  made.style.setProperty("--c", `rgb(${look.colour(category).join(" ")})`);
  return made;
}

/* --- a picture with its segments --- */

const painted = new Set(); // canvases in the document

function view(image, segments, tag) {
  const made = element("span", "view");
  if (image.src) {
    const picture = element("img");
    picture.src = image.src;
    picture.alt = "";
    picture.decoding = "async";
    made.append(picture);
  }
  const canvas = element("canvas");
  canvas.setAttribute("aria-hidden", "true");
  canvas.draw = (only) => paint(canvas, image, segments, only === undefined ? look : { ...look, only });
  canvas.draw();
  painted.add(canvas);
  made.append(canvas);
  if (tag) made.append(element("span", "tag", tag));
  return made;
}

function missing(place) {
  return element("span", "none", `No picture: ${facts[place].missing}`);
}

function views(place, beside) {
  const image = images[place];
  const found = beside && image.before ? [view(image, image.before, "before"), view(image, image.now, "now")] : [view(image, image.now)];
  if (facts[place].missing && figures.gallery.pictures !== "none") found[0].append(missing(place));
  return found;
}

/* Against ground truth: PQ where it is known, else AP. */
const qualityOf = (place) => facts[place].pq ?? facts[place].ap;

function qualities(place) {
  const { pq, ap } = facts[place];
  return [["PQ", pq], ["AP", ap]].filter(([, value]) => value !== null).map(([name, value]) => `${name} ${percent(value)}`);
}

function summary(place) {
  const { segments, min_score: lowest, differing, change } = facts[place];
  const changed = differing ?? change;
  if ($("sort").value === "change" && changed !== null) return `${percent(changed)} changed`;
  if ($("sort").value === "quality" && qualityOf(place) !== null) return qualities(place).join(" · ");
  return lowest === null ? "no segments" : `${count.format(segments)} · lowest ${lowest.toFixed(2)}`;
}

function card(place, width, height, beside) {
  const made = element("div", "shot");
  made.style.width = `${width}px`;
  const button = element("button", "pic");
  button.type = "button";
  button.style.height = `${height}px`;
  const name = shortName(images[place].key);
  button.setAttribute("aria-label", `${name}, ${summary(place)}; open`);
  button.append(...views(place, beside));
  button.addEventListener("click", () => open(place));
  const caption = element("div", "cap");
  const title = element("b", "", name);
  title.title = images[place].key;
  caption.append(title);
  if (width > 210) caption.append(element("span", "", summary(place)));
  made.append(button, caption);
  return made;
}

/* --- the gallery --- */

let shown = [];
let cell = null; // [true category, found category] of the matrix, if its images are shown
const beside = () => Boolean($("beside")?.checked);
const gallery = new Gallery($("grid"), (item, width, height) => card(item.place, width, height, beside()));

const orders = {
  chosen: () => 0,
  score: (a, b) => (facts[a].min_score ?? 2) - (facts[b].min_score ?? 2),
  segments: (a, b) => facts[b].segments - facts[a].segments,
  change: (a, b) => (facts[b].differing ?? facts[b].change ?? -1) - (facts[a].differing ?? facts[a].change ?? -1),
  quality: (a, b) => (qualityOf(a) ?? 2) - (qualityOf(b) ?? 2),
  name: (a, b) => (images[a].key < images[b].key ? -1 : 1),
};

function update() {
  const category = $("class").value, words = $("search").value.trim().toLowerCase();
  shown = images
    .map((_, place) => place)
    .filter((place) => !category || images[place].now.some((segment) => segment.c === Number(category)))
    .filter((place) => !cell || facts[place].mistaken.some(([truth, found]) => truth === cell[0] && found === cell[1]))
    .filter((place) => !words || images[place].key.toLowerCase().includes(words))
    .sort(orders[$("sort").value]);
  painted.clear();
  const both = beside();
  gallery.show(
    shown.map((place) => {
      const { w, h, before } = images[place];
      return { place, aspect: Math.min(4, Math.max(0.4, w / h)) * (both && before ? 2 : 1) };
    }),
  );
  const mistaken = cell ? ` in which ${nameOf(cell[0])} is found as ${nameOf(cell[1])}` : "";
  const of = (category ? ` with ${nameOf(Number(category))}` : "") + mistaken;
  $("found").textContent = shown.length ? `${count.format(shown.length)} images${of}` : `No image of the gallery fits${of && `: none${of}`}.`;
}

function redraw() {
  for (const canvas of painted) {
    if (canvas.isConnected) canvas.draw();
    else painted.delete(canvas);
  }
}

function addClass(category) {
  const option = element("option", "", nameOf(category));
  option.value = category;
  $("class").append(option);
}

for (const one of figures.classes.slice(0, 400)) addClass(one.category_id);
$("class").addEventListener("change", () => (cell = null));
for (const id of ["sort", "class", "beside"]) $(id)?.addEventListener("change", update);
$("search").addEventListener("input", update);
$("opacity").addEventListener("input", () => {
  look.opacity = Number($("opacity").value) / 100;
  redraw();
});
$("outlines").addEventListener("change", () => {
  look.outlines = $("outlines").checked;
  redraw();
});
$("tools").addEventListener("submit", (event) => event.preventDefault());

/* Switches are made when they are asked for: a label map may have a thousand classes. */
document.querySelector(".switches").addEventListener("toggle", (event) => {
  if (!event.target.open || $("switches").childElementCount) return;
  for (const one of figures.classes.slice(0, 200)) {
    const label = element("label", "check"), box = element("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      if (box.checked) look.hidden.delete(one.category_id);
      else look.hidden.add(one.category_id);
      redraw();
    });
    label.append(box, swatch(one.category_id), element("span", "", one.name));
    $("switches").append(label);
  }
});

/* --- one image, large --- */

let current = 0;

function open(place) {
  current = place;
  const image = images[place], fact = facts[place];
  $("large-title").textContent = shortName(image.key);
  $("large-key").textContent = image.key;
  const made = views(place, true);
  for (const one of made) {
    one.style.aspectRatio = `${image.w} / ${image.h}`;
    one.style.maxHeight = "72dvh";
    one.style.maxWidth = `${(0.72 * innerHeight * image.w) / image.h}px`;
  }
  $("views").replaceChildren(...made);
  const said = [`${fact.width} × ${fact.height}`, `${count.format(fact.segments)} segments`];
  if (image.of > image.now.length) said.push(`the best ${image.now.length} are drawn`);
  said.push(...qualities(place));
  if (fact.differing !== null) said.push(`${percent(fact.differing)} of the pixels changed class`);
  said.push(...fact.why);
  $("large-facts").replaceChildren(...said.map((text) => element("li", "", text)));
  const canvas = made.at(-1).querySelector("canvas");
  const rows = [...image.now].sort((a, b) => b.a - a.a).map((segment) => {
    const row = element("li"), button = element("button");
    button.type = "button";
    button.append(swatch(segment.c), document.createTextNode(nameOf(segment.c)), element("span", "", `${segment.s.toFixed(2)} · ${percent(segment.a / (fact.width * fact.height))}`));
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => canvas.draw(segment.id));
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => canvas.draw());
    row.append(button);
    return row;
  });
  $("large-segments").replaceChildren(...rows);
  if (!$("large").open) $("large").showModal();
}

function step(by) {
  const at = shown.indexOf(current);
  if (shown.length) open(shown[(at + by + shown.length) % shown.length]);
}

$("close").addEventListener("click", () => $("large").close());
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("large").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
});
$("large").addEventListener("click", (event) => {
  if (event.target === $("large")) $("large").close();
});

/* --- the rest of the page --- */

function follow() {
  const ofCell = /^#cell=(-?\d+),(-?\d+)$/.exec(location.hash);
  const match = ofCell ? ["", ""] : /^#class=(-?\d+)$/.exec(location.hash);
  if (!match) return;
  cell = ofCell && [Number(ofCell[1]), Number(ofCell[2])];
  if (match[1] && ![...$("class").options].some((one) => one.value === match[1])) addClass(Number(match[1]));
  $("class").value = match[1];
  update();
  $("gallery-title").focus({ preventScroll: true });
  $("gallery").scrollIntoView();
}
addEventListener("hashchange", follow);

for (const button of document.querySelectorAll("[data-sort]")) {
  button.addEventListener("click", () => {
    $("sort").value = button.dataset.sort;
    if ($("beside")) $("beside").checked = button.dataset.sort === "change";
    update();
    $("gallery").scrollIntoView();
  });
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.closest(".query").querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

$("more-classes")?.addEventListener("click", (event) => {
  const body = $("class-table").tBodies[0], from = body.rows.length;
  for (const one of figures.classes.slice(from, from + 100)) {
    const row = element("tr"), head = element("th"), link = element("a");
    head.scope = "row";
    link.href = `#class=${one.category_id}`;
    link.append(swatch(one.category_id), document.createTextNode(one.name));
    head.append(link);
    row.append(head);
    for (const [text, rule] of [
      [count.format(one.segments), "n"],
      [count.format(one.images), "n wideonly"],
      [`${(100 * one.pixel_share).toFixed(1)} %`, "n"],
      [one.mean_score.toFixed(2), "n wideonly"],
      ...(figures.against ? [[one.change ? (100 * one.change.change).toFixed(2) : "–", "n"]] : []),
    ])
      row.append(element("td", rule, text));
    body.append(row);
  }
  if (body.rows.length >= figures.classes.length) event.target.remove();
});

const found = images.map((_, place) => place).filter((place) => images[place].now.length);
const pictured = found.filter((place) => images[place].src);
const glance = pictured.length ? pictured : found;
const spread = Math.max(1, Math.floor(glance.length / 8));
for (const place of glance.filter((_, number) => number % spread === 0).slice(0, 8)) {
  const height = innerWidth < 760 ? 170 : 200;
  const aspect = Math.min(2.5, Math.max(0.5, images[place].w / images[place].h));
  const item = element("li");
  item.append(card(place, Math.min(Math.round(aspect * height), innerWidth - 48), height, false));
  $("strip").append(item);
}
update();
follow();

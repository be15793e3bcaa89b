/* A gallery of rows of equal height, of which only those near the window are in the document. */

const GAP = 12, CAPTION = 40, MOST_HEIGHT = 520;

class Gallery {
  constructor(root, makeCard) {
    this.root = root;
    this.makeCard = makeCard;
    this.items = [];
    this.rows = [];
    this.live = new Map();
    const draw = () => {
      this.asked ??= requestAnimationFrame(() => {
        this.asked = undefined;
        this.draw();
      });
    };
    addEventListener("scroll", draw, { passive: true });
    new ResizeObserver(() => {
      if (this.width !== root.clientWidth) this.show(this.items);
    }).observe(root);
  }

  /* `items`: { image, aspect } in their order. */
  show(items) {
    this.items = items;
    this.width = this.root.clientWidth;
    this.rows = layOut(items, this.width);
    for (const row of this.live.values()) row.remove();
    this.live.clear();
    const last = this.rows.at(-1);
    this.root.style.height = `${last ? last.top + last.height + CAPTION + GAP : 0}px`;
    this.draw();
  }

  draw() {
    const top = -this.root.getBoundingClientRect().top;
    const first = top - innerHeight, last = top + 2 * innerHeight;
    const near = new Set();
    this.rows.forEach((row, number) => {
      if (row.top + row.height + CAPTION < first || row.top > last) return;
      near.add(number);
      if (!this.live.has(number)) this.live.set(number, this.add(row, number));
    });
    for (const [number, element] of this.live) {
      if (near.has(number) || element.contains(document.activeElement)) continue;
      element.remove();
      this.live.delete(number);
    }
  }

  add(row, number) {
    const element = document.createElement("div");
    element.className = "row";
    element.setAttribute("role", "presentation");
    element.style.top = `${row.top}px`;
    for (const item of row.items) {
      const card = this.makeCard(item, Math.floor(item.aspect * row.height), row.height);
      card.setAttribute("role", "listitem");
      element.append(card);
    }
    const after = [...this.live.keys()].filter((other) => other > number).sort((a, b) => a - b)[0];
    this.root.insertBefore(element, after === undefined ? null : this.live.get(after));
    return element;
  }
}

/* Rows that fill the width, each as high as its pictures need. */
function layOut(items, width) {
  const wanted = width < 560 ? width : width < 900 ? 190 : 230;
  const rows = [];
  let top = 0, row = [], aspects = 0;
  const end = (isLast) => {
    const fitting = (width - GAP * (row.length - 1)) / aspects;
    const height = Math.floor(Math.min(isLast ? Math.min(fitting, wanted) : fitting, MOST_HEIGHT, width / Math.max(...row.map((one) => one.aspect))));
    rows.push({ top, height, items: row });
    top += height + CAPTION + GAP;
    row = [];
    aspects = 0;
  };
  for (const item of items) {
    row.push(item);
    aspects += item.aspect;
    if (width < 560 || aspects * wanted + GAP * (row.length - 1) >= width) end(false);
  }
  if (row.length) end(true);
  return rows;
}

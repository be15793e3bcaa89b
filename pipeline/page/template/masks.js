"use strict";
/* Masks: COCO RLE in column-major order, as m2f_core/masks/rle.py explains it. */

function runLengths(counts) {
  const lengths = [];
  for (let at = 0; at < counts.length; ) {
    let number = 0, shift = 0, group;
    do {
      group = counts.charCodeAt(at++) - 48;
      number |= (group & 31) << shift;
      shift += 5;
    } while (group & 32);
    if (group & 16) number |= -1 << shift;
    if (lengths.length > 2) number += lengths[lengths.length - 2];
    lengths.push(number);
  }
  return lengths;
}

/* Which segment each pixel shows, row by row: its place in the list, or -1. Later segments cover earlier ones. */
function owners(width, height, segments, isShown) {
  const owner = new Int16Array(width * height).fill(-1);
  segments.forEach((segment, place) => {
    if (!isShown(segment)) return;
    segment.runs ??= runLengths(segment.m);
    let position = 0;
    segment.runs.forEach((length, run) => {
      const end = position + length;
      if (run % 2) {
        for (let x = Math.floor(position / height), y = position % height; position < end; x++, y = 0) {
          const stop = Math.min(height, y + end - position);
          position += stop - y;
          for (; y < stop; y++) owner[y * width + x] = place;
        }
      }
      position = end;
    });
  });
  return owner;
}

/* Draw segments on a canvas of the size of the picture: filled by category, things outlined. */
function paint(canvas, image, segments, look) {
  const { w: width, h: height } = image;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer); // bytes R, G, B, A in this order: A is the highest
  const owner = owners(width, height, segments, (segment) => !look.hidden.has(segment.c));
  const fills = segments.map((segment) => {
    const faded = look.only !== undefined && look.only !== segment.id;
    const alpha = Math.round(255 * (faded ? look.opacity * 0.25 : look.only === segment.id ? Math.max(look.opacity, 0.6) : look.opacity));
    const [red, green, blue] = look.colour(segment.c);
    return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  });
  const outlined = segments.map((segment) => look.outlines && look.isThing(segment.c));
  const white = 0xf0ffffff;
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const mine = owner[at];
      if (mine < 0) continue;
      const edge =
        outlined[mine] &&
        ((x > 0 && owner[at - 1] !== mine) || (x < width - 1 && owner[at + 1] !== mine) ||
          (y > 0 && owner[at - width] !== mine) || (y < height - 1 && owner[at + width] !== mine));
      words[at] = edge ? white : fills[mine];
    }
  }
  context.putImageData(pixels, 0, 0);
}

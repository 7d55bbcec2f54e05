// Four panels of a picture: layers over the image, so that its own pixels are never read.

// A pixel as a canvas has it.
const pack = ([red, green, blue], alpha = 255) =>
  ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

const CLEAR = 0;
const NOT_COUNTED = pack([128, 128, 128]);
const TOO_MUCH = pack([215, 25, 28]);
const MISSED = pack([44, 90, 210]);
const OUTLINE = pack([255, 230, 0]);
const opaque = data.colours.map((colour) => pack(colour));
// As predicted, over the image: background darkened, one of two classes clear.
const glazed = data.colours.map((colour, k) =>
  k === 0 ? pack(colour, 178) : data.isBinary ? CLEAR : pack(colour, 115),
);

let level = data.start; // of a binary task: foreground is an output of at least this

// The nearest level that a picture has which is carried in steps.
const nearest = ({ step }) => data.start + step * Math.round((level - data.start) / step);

function predicted(picture) {
  if (!data.isBinary) return picture.output;
  const least = nearest(picture);
  return picture.output.map((q) => (q >= least ? 1 : 0));
}

function draw(canvas, { width, height }, colourOf) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let p = 0; p < pixels.length; p++) pixels[p] = colourOf(p);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function isEdge(map, p, width) {
  return (
    ((p + 1) % width && map[p] !== map[p + 1]) ||
    (p + width < map.length && map[p] !== map[p + width])
  );
}

function panel(title, name, { src }, { isPale = false, hasImage = true, hasMap = true }) {
  const layers = element("span", { className: isPale ? "layers pale" : "layers" });
  if (hasImage) layers.append(element("img", { src, alt: hasMap ? "" : `image ${name}` }));
  const canvas = element("canvas");
  if (hasMap) {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${title} of ${name}`);
    layers.append(canvas);
  }
  const figure = element("figure", { className: "panel" }, layers, element("figcaption", {}, title));
  return { figure, canvas };
}

// Fills a box with panels; the function that comes back redraws those that the threshold changes,
// and tells what it shows.
async function fill(box, index) {
  const shown = await picture(index);
  if (!shown) {
    const reason = "The page does not carry this picture: with all of them it would be too large.";
    box.replaceChildren(element("p", { className: "absent" }, reason));
    return () => null;
  }
  const { target, width } = shown;
  const name = names[index];
  const image = panel("image", name, shown, { hasMap: false });
  const truth = panel("truth", name, shown, { hasImage: false });
  const prediction = panel("prediction", name, shown, {});
  const errors = panel("errors", name, shown, { isPale: true });
  draw(truth.canvas, shown, (p) => opaque[target[p]] ?? NOT_COUNTED);
  box.replaceChildren(
    element("div", { className: "panels" }, image.figure, truth.figure, prediction.figure, errors.figure),
  );
  const redraw = () => {
    const map = predicted(shown);
    draw(prediction.canvas, shown, (p) =>
      data.isBinary && isEdge(map, p, width) ? OUTLINE : glazed[map[p]],
    );
    draw(errors.canvas, shown, (p) => {
      if (map[p] === target[p] || target[p] === 255) return CLEAR;
      return data.isBinary && map[p] === 0 ? MISSED : TOO_MUCH;
    });
    return shown;
  };
  redraw();
  return redraw;
}

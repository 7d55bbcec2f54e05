// Four panels of a picture: layers over the image, so that its own pixels are never read.

const NOT_COUNTED = [128, 128, 128];
const TOO_MUCH = [215, 25, 28];
const MISSED = [44, 90, 210];
const OUTLINE = [255, 230, 0];

let level = 128; // of a binary task: foreground is an output of at least this

function predicted(picture) {
  return data.isBinary ? picture.output.map((q) => (q >= level ? 1 : 0)) : picture.output;
}

function draw(canvas, { width, height }, colourOf) {
  canvas.width = width;
  canvas.height = height;
  const pixels = new ImageData(width, height);
  for (let p = 0; p < width * height; p++) {
    const colour = colourOf(p);
    if (colour) pixels.data.set([...colour[0], colour[1]], 4 * p);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function isEdge(map, p, width) {
  return (
    ((p + 1) % width && map[p] !== map[p + 1]) ||
    (p + width < map.length && map[p] !== map[p + width])
  );
}

function panel(title, name, picture, isPale, hasImage) {
  const layers = element("span", { className: isPale ? "layers pale" : "layers" });
  if (hasImage) layers.append(element("img", { src: picture.src, alt: title === "image" ? name : "" }));
  const canvas = element("canvas");
  if (title !== "image") {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${title} of ${name}`);
    layers.append(canvas);
  }
  const figure = element("figure", { className: "panel" }, layers, element("figcaption", {}, title));
  return { figure, canvas };
}

// Fills a box with panels; the function that comes back redraws those that the threshold changes.
async function fill(box, index) {
  const picture_ = await picture(index);
  if (!picture_) {
    const reason = "The page does not carry this picture: with all of them it would be too large.";
    box.replaceChildren(element("p", { className: "absent" }, reason));
    return () => {};
  }
  const { target, width } = picture_;
  const image = panel("image", names[index], picture_, false, true);
  const truth = panel("truth", names[index], picture_, false, false);
  const prediction = panel("prediction", names[index], picture_, false, true);
  const errors = panel("errors", names[index], picture_, true, true);
  draw(truth.canvas, picture_, (p) => [data.colours[target[p]] ?? NOT_COUNTED, 255]);
  box.replaceChildren(
    element("div", { className: "panels" }, image.figure, truth.figure, prediction.figure, errors.figure),
  );
  const redraw = () => {
    const map = predicted(picture_);
    draw(prediction.canvas, picture_, (p) => {
      if (data.isBinary && isEdge(map, p, width)) return [OUTLINE, 255];
      if (map[p] === 0) return [data.colours[0], 178];
      return data.isBinary ? null : [data.colours[map[p]], 115];
    });
    draw(errors.canvas, picture_, (p) => {
      if (map[p] === target[p] || target[p] === 255) return null;
      return [data.isBinary && map[p] === 0 ? MISSED : TOO_MUCH, 255];
    });
  };
  redraw();
  return redraw;
}

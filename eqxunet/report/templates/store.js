// What the page carries: tables as JSON, pictures and counts as deflated bytes in base64.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const column = (name) => data.columns.find((column) => column.name === name)?.values;
const names = column("name").map(String);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function format(value, kind) {
  if (value === null) return "–";
  if (kind === "distance") return value.toFixed(1);
  if (kind !== "number") return String(value);
  return Math.abs(value) < 100 ? value.toFixed(3) : value.toPrecision(4);
}

async function inflate(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const { readable, writable } = new DecompressionStream("deflate");
  const writer = writable.getWriter();
  writer.write(bytes);
  writer.close();
  return new Uint8Array(await new Response(readable).arrayBuffer());
}

// The maps come as differences along both axes.
function undo(map, width) {
  for (let p = 1; p < map.length; p++) {
    const isFirst = p % width === 0;
    const left = isFirst ? 0 : map[p - 1];
    const above = p < width ? 0 : map[p - width];
    const corner = isFirst || p < width ? 0 : map[p - width - 1];
    map[p] += left + above - corner;
  }
  return map;
}

// An image and its maps; null where the page does not carry it.
async function picture(index) {
  const block = $(`picture-${index}`);
  if (!block) return null;
  const [width, height, step, image, packed] = block.textContent.split(" ");
  const maps = await inflate(packed);
  const pixels = width * height;
  return {
    width: Number(width),
    height: Number(height),
    step: Number(step),
    src: `data:image/webp;base64,${image}`,
    target: undo(maps.subarray(0, pixels), Number(width)),
    output: undo(maps.subarray(pixels), Number(width)),
  };
}

const EPSILON = 1e-6;

// Of a binary task: how many pixels of each image and truth have an output of at least k.
const atLeast = data.isBinary && new Uint32Array((await inflate($("histograms").textContent)).buffer);
if (atLeast) {
  for (let i = atLeast.length - 2; i >= 0; i--) {
    if (i % 256 !== 255) atLeast[i] += atLeast[i + 1];
  }
}

function countsAt(k, index) {
  const background = 512 * index;
  const foreground = background + 256;
  const tp = atLeast[foreground + k];
  return { tp, fp: atLeast[background + k], fn: atLeast[foreground] - tp };
}

const iouOf = ({ tp, fp, fn }) => (tp + EPSILON) / (tp + fp + fn + EPSILON);
const diceOf = ({ tp, fp, fn }) => (2 * tp + EPSILON) / (2 * tp + fp + fn + EPSILON);

// The cards of the worst and the best, and the threshold that they follow.

const cards = [];
const inSight = new Set();

function refresh(card) {
  if (data.isBinary) {
    const iou = iouOf(countsAt(level, card.index));
    card.score.value = iou;
    card.score.textContent = `IoU ${iou.toFixed(3)}`;
  }
  card.isStale = !inSight.has(card);
  if (!card.isStale) card.redraw();
}

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const card = cards.find((card) => card.item === entry.target);
    if (!entry.isIntersecting) {
      inSight.delete(card);
      continue;
    }
    inSight.add(card);
    if (card.isStale) refresh(card);
  }
});

for (const part of ["worst", "best"]) {
  for (const index of data[part]) {
    const button = element("button", { type: "button", title: names[index] }, names[index]);
    button.addEventListener("click", () => view(index));
    const iou = column("iou")[index];
    const score = element("data", { value: iou }, `IoU ${format(iou, "number")}`);
    const box = element("div");
    const head = element("div", { className: "card-head" }, button, score);
    const item = element("li", { className: "card" }, head, box);
    $(part).append(item);
    const card = { index, item, score, redraw: await fill(box, index), isStale: false };
    cards.push(card);
    observer.observe(item);
  }
}

function show(id, value) {
  const digits = value.toFixed(6);
  $(id).value = value;
  $(id).replaceChildren(digits.slice(0, 5), element("small", {}, digits.slice(5)));
}

function scoreAt(k) {
  const sum = { tp: 0, fp: 0, fn: 0 };
  let iou = 0;
  let dice = 0;
  for (let index = 0; index < names.length; index++) {
    const counts = countsAt(k, index);
    iou += iouOf(counts);
    dice += diceOf(counts);
    for (const name in sum) sum[name] += counts[name];
  }
  show("mean-iou", iou / names.length);
  show("mean-dice", dice / names.length);
  show("pooled-iou", iouOf(sum));
  show("pooled-dice", diceOf(sum));
}

function setLevel(k) {
  level = k;
  const text = (k / 256).toFixed(3);
  $("slider").value = k;
  $("slider").setAttribute("aria-valuetext", text);
  $("level").value = text;
  scoreAt(k);
  cards.forEach(refresh);
  redrawViewed();
}

if (data.isBinary) {
  const start = Math.min(255, Math.round(256 * (data.threshold ?? 0.5)));
  $("slider").addEventListener("input", () => setLevel(Number($("slider").value)));
  $("reset").addEventListener("click", () => setLevel(start));
  setLevel(start);
}

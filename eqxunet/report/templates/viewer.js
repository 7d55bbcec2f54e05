// One picture, large, with all its numbers.

const viewer = $("viewer");
let viewed = 0;
let neighbours = () => []; // indices in the order that the arrows follow

async function view(index) {
  viewed = index;
  $("viewer-name").textContent = names[index];
  $("viewer-values").replaceChildren(
    ...data.columns
      .filter((column) => column.name !== "name")
      .map((column) =>
        element(
          "div",
          {},
          element("dt", {}, column.label),
          element("dd", {}, format(column.values[index], column.kind)),
        ),
      ),
  );
  if (!viewer.open) viewer.showModal();
  const box = element("div");
  const redraw = await fill(box, index);
  if (viewed !== index) return; // another one was asked for meanwhile
  $("viewer-panels").replaceChildren(box);
  if (data.isBinary) $("viewer-note").textContent = noteOn(index, redraw());
}

function noteOn(index, picture) {
  const counts = countsAt(level, index);
  const [iou, dice] = [iouOf(counts), diceOf(counts)].map((score) => score.toFixed(3));
  const note = `At the threshold ${(level / 256).toFixed(3)}: IoU ${iou}, Dice ${dice}.`;
  if (!picture || nearest(picture) === level) return note;
  const near = (nearest(picture) / 256).toFixed(3);
  return `${note} Shown at ${near}, the nearest that the page carries of this picture.`;
}

function step(by) {
  const order = neighbours();
  const next = order[order.indexOf(viewed) + by];
  if (next !== undefined) view(next);
}

$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
viewer.addEventListener("click", (event) => {
  if (event.target === viewer) viewer.close(); // beside it
});

// Dark or light: what the system says, until the button is pressed.

const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const tell = () => $("theme").setAttribute("aria-pressed", isDark());
$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  tell();
});
system.addEventListener("change", tell);
tell();
document.documentElement.dataset.ready = "";

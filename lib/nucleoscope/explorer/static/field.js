// A setting that is typed in notebooks/explore.py, with what is wrong with it beside it, in words.

let number = 0; // of the fields of this page

function render({ model, el }) {
  el.classList.add("nucleoscope", "nx-field");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the keys to the field
  const id = `nx-field-${Math.random().toString(36).slice(2)}-${number++}`;
  const label = document.createElement("label"), input = document.createElement("input"), problem = document.createElement("p");
  [label.htmlFor, label.textContent, input.id, problem.id] = [id, model.get("label"), id, `${id}-problem`];
  Object.assign(input, { type: "text", autocomplete: "off", spellcheck: false });
  if (model.get("step")) input.inputMode = "decimal";
  input.setAttribute("aria-describedby", problem.id);
  problem.role = "alert";
  el.append(label, input, problem);
  const send = (text) => {
    model.set("text", text);
    model.save_changes();
  };
  input.addEventListener("change", () => send(input.value));
  input.addEventListener("keydown", (event) => { // as in a browser's own fields for numbers
    if (event.key === "Enter") send(input.value);
    const way = { ArrowUp: 1, ArrowDown: -1 }[event.key], value = Number(input.value);
    if (!way || !model.get("step") || !input.value.trim() || !Number.isFinite(value)) return;
    event.preventDefault();
    input.value = String(Number((value + way * model.get("step")).toFixed(10)));
    send(input.value);
  });
  const parts = {
    text: () => input.value === model.get("text") || (input.value = model.get("text")),
    problem: () => {
      problem.textContent = model.get("problem");
      input.setAttribute("aria-invalid", String(Boolean(model.get("problem"))));
    },
  };
  for (const [name, draw] of Object.entries(parts)) {
    model.on(`change:${name}`, draw);
    draw();
  }
  return () => { // anywidget calls this when the view is removed
    for (const [name, draw] of Object.entries(parts)) model.off(`change:${name}`, draw);
  };
}

export default { render };

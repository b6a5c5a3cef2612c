// The menu of a measured run's prompts in notebooks/explore.py: menu.js draws it, as on the run's page.

function render({ model, el }) {
  el.classList.add("nucleoscope");
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the arrow keys to the list
  let mark = () => {};
  const draw = () => {
    const content = model.get("content");
    if (!content.prompts?.length) return void el.replaceChildren();
    const send = (name, value) => (model.set(name, value), model.save_changes());
    mark = drawMenu(el, content, (number) => send("value", number), (found) => send("found", found));
    mark(model.get("value"));
  };
  const show = () => mark(model.get("value"));
  model.on("change:content", draw);
  model.on("change:value", show);
  draw();
  return () => { // anywidget calls this when the view is removed
    model.off("change:content", draw);
    model.off("change:value", show);
  };
}

export default { render };

// The capacity factor: a slider, a field to type in and a tick for no limit, which always say the same.
"use strict";

/** What "no limit" goes back to when its tick is taken away. */
let lastFactor = "1.25";

/** Shows the factor in force.  Without a limit there is no number to see, and the slider is grey, but moves. */
function showFactor() {
  byId("factor-typed").value = state.factor ?? "";
  byId("factor").value = lastFactor;
  markFactor();
}

/** Shows all but the field, in which somebody may be typing. */
function markFactor() {
  const { factor } = state, slider = byId("factor");
  byId("no-limit").checked = factor === null;
  slider.classList.toggle("off", factor === null);
  if (factor === null) slider.setAttribute("aria-valuetext", "no limit");
  else slider.removeAttribute("aria-valuetext");
  refuse("");
}

/** Says beside the field why what stands in it is not used; "" takes that back. */
function refuse(words) {
  byId("factor-wrong").textContent = words;
  byId("factor-typed").setAttribute("aria-invalid", words !== "");
}

/** Routes with another factor, a decimal in a string as Python writes it too; null is no limit. */
function limitTo(factor) {
  state.factor = factor;
  lastFactor = factor ?? lastFactor;
  draw();
}

/** Takes a factor that was typed; one that is none leaves the last one in force. */
function typeFactor({ target }) {
  const factor = Number(target.value);
  if (!(factor > 0 && factor < Infinity)) return refuse(`must be above 0; still ${state.factor ?? "no limit"}`);
  limitTo(String(factor));
  byId("factor").value = lastFactor;
  return markFactor();
}

function setUpFactor() {
  byId("factor").oninput = ({ target }) => { limitTo(String(Number(target.value))); showFactor(); };
  byId("factor-typed").oninput = typeFactor;
  byId("no-limit").onchange = ({ target }) => { limitTo(target.checked ? null : lastFactor); showFactor(); };
  showFactor();
}

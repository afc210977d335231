// The capacity factor: a slider, a text field and a checkbox for no limit, which always agree.
"use strict";

/** The factor that comes back when "no limit" is unchecked. */
let lastFactor = "1.25";

/** Shows the current factor.  Without a limit there is no number, and the slider is gray but still moves. */
function showFactor() {
  byId("factor-typed").value = state.factor ?? "";
  byId("factor").value = lastFactor;
  markFactor();
}

/** Updates everything except the text field, in which the user may be typing. */
function markFactor() {
  const { factor } = state, slider = byId("factor");
  byId("no-limit").checked = factor === null;
  slider.classList.toggle("off", factor === null);
  if (factor === null) slider.setAttribute("aria-valuetext", "no limit");
  else slider.removeAttribute("aria-valuetext");
  refuse("");
}

/** Shows next to the field why its value is not used; "" removes the message. */
function refuse(words) {
  byId("factor-wrong").textContent = words;
  byId("factor-typed").setAttribute("aria-invalid", words !== "");
}

/** Routes with a new factor, a decimal in a string in the same form as in Python; null is no limit. */
function limitTo(factor) {
  state.factor = factor;
  lastFactor = factor ?? lastFactor;
  draw();
}

/** Uses a factor that was typed; an invalid one leaves the last factor in force. */
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

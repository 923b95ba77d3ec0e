import type { TargetName } from '../targets/target.ts';
import { html, type Markup } from './markup.ts';

/** Every target has a shape as well as a colour: charts stay readable in print and to colour-blind eyes. */
const SHAPES: Readonly<Record<TargetName, Markup>> = {
  onnx: html`<circle class="shape" r="3.2"/>`,
  qnn: html`<rect class="shape" x="-2.9" y="-2.9" width="5.8" height="5.8"/>`,
  tflite: html`<path class="shape" d="M0-3.9 3.7 2.7-3.7 2.7Z"/>`,
  hf: html`<path class="shape" d="M0-3.9 3.9 0 0 3.9-3.9 0Z"/>`,
};

/** The shapes as definitions `#m-<target>`, and `#ring`; once in a page. */
export function defineMarkers(targets: readonly TargetName[]): Markup {
  return html`<svg width="0" height="0" class="defs" aria-hidden="true"><defs>${targets.map(
    (name) => html`<g id="m-${name}">${SHAPES[name]}</g>`,
  )}<g id="ring"><circle r="7"/></g></defs></svg>`;
}

/** A target's mark in a line of text. */
export function renderMarker(target: TargetName): Markup {
  return html`<svg class="marker t-${target}" width="14" height="14" viewBox="-5 -5 10 10" aria-hidden="true"><use href="#m-${target}"/></svg>`;
}

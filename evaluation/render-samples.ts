import { listTargets } from './describe-report.ts';
import { markDifferences, sharedWords } from './mark-differences.ts';
import { html, type Markup } from './markup.ts';
import type { Report } from './report.ts';
import { renderMarker } from './target-marker.ts';

/** Greedy texts beside the float model's, what it did not write marked. */
export function renderSamples(report: Report): Markup {
  const float = report.samples.float;
  if (float === undefined) return html``;
  const prompt = html`<span class="prompt">${report.prompt}</span>`;
  const columns = listTargets(report).map(([name]) => {
    const text = report.samples[name];
    const body =
      text === undefined
        ? html`<p class="absent">Not generated: the engine is too slow for text at this size.</p>`
        : html`<p class="text" dir="auto">${prompt}${markDifferences(text, float).map((span) =>
            span.same ? span.text : renderDifference(span.text),
          )}</p>`;
    const note = text === undefined ? '' : text === float ? 'the same text' : describeShared(sharedWords(text, float));
    return html`<div class="sample t-${name}"><h3>${renderMarker(name)}${name}<small>${note}</small></h3>${body}</div>`;
  });
  return html`<section><h2>Generated text</h2>
<p class="about">Greedy continuations of <q class="prompt">${report.prompt}</q>. Marked words are not in the float model's text. One changed word changes all that follow: a text that differs can be as good.</p>
<div class="samples"><div class="sample"><h3>float<small>reference</small></h3><p class="text" dir="auto">${prompt}${float}</p></div>${columns}</div></section>`;
}

function describeShared(words: number): string {
  if (words === 0) return 'differs from the first word';
  return words === 1 ? 'the first word is the same' : `the first ${words} words are the same`;
}

/** White space between words stays unmarked at the ends. */
function renderDifference(text: string): Markup {
  const [, before, words, after] = /^(\s*)(.*?)(\s*)$/s.exec(text)!;
  return words === ''
    ? html`<mark>${text.replaceAll('\n', '\u21b5\n')}</mark>`
    : html`${before}<mark>${words}</mark>${after}`;
}

/** HTML that is safe to put into a page: only `html`, `join` and `raw` make it, and `html` escapes all else. */
export class Markup {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }

  toString(): string {
    return this.text;
  }
}

export type Content = Markup | string | number | undefined | false | readonly Content[];

const ENTITIES: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

/**
 * Escapes text for an element or a quoted attribute. Control characters, which HTML forbids, become their pictures, and
 * lone surrogates the replacement character: model output and names of a stranger's graph hold anything.
 */
export function escapeHtml(text: string): string {
  return text
    .replace(/[&<>"']/g, (character) => ENTITIES[character]!)
    .replace(/[\p{Cc}\p{Cs}]/gu, (character) => {
      if (character === '\n' || character === '\t') return character;
      const code = character.codePointAt(0)!;
      return code < 0x20 ? String.fromCodePoint(0x2400 + code) : '\ufffd';
    });
}

function render(content: Content): string {
  if (content === undefined || content === false) return '';
  if (content instanceof Markup) return content.text;
  if (typeof content === 'object') return content.map(render).join('');
  return escapeHtml(String(content));
}

/** A template of HTML: values in it are escaped unless they are Markup; lists are put one after the other. */
export function html(strings: TemplateStringsArray, ...values: readonly Content[]): Markup {
  let text = strings[0]!;
  for (let i = 0; i < values.length; i++) text += render(values[i]) + strings[i + 1]!;
  return new Markup(text);
}

/** Text of our own that is HTML, CSS or a script already; never anything that came from a model or a user. */
export function raw(text: string): Markup {
  return new Markup(text);
}

/** A name as code that may break after its dots, slashes and underscores. */
export function renderPath(name: string): Markup {
  const parts = name.split(/(?<=[./_])(?=[^./_])/);
  return html`<code>${parts.map((part, i) => (i > 0 ? html`<wbr>${part}` : part))}</code>`;
}

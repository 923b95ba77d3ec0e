import { NpucError } from '../errors.ts';

export type TokenKind = 'newline' | 'word' | 'number' | 'string' | 'value' | 'graph' | 'digest' | 'mark' | 'end';

/** One token of the text form. `text` is its meaning (a string's content, a name without its sigil), not its spelling. */
export interface Token {
  readonly kind: TokenKind;
  readonly text: string;
  readonly start: number;
  readonly stop: number;
}

/** Characters that a value or graph name may hold without quotes: ONNX exporters' names mostly fit. */
const SIGIL_NAME = /[%@][A-Za-z0-9_./]+/y;
const SIGIL_STRING = /[%@]"(?:[^"\\\n]|\\.)*"/y;
const WORD = /[A-Za-z_][A-Za-z0-9_.]*/y;
const NUMBER = /-?(?:inf\b|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)/y;
const STRING = /"(?:[^"\\\n]|\\.)*"/y;
const DIGEST = /#[0-9a-f]{4,64}/y;
const BLANK = /(?:[ \t\r]|\/\/[^\n]*)+/y;
const MARK = /->|::|[[\](){}:,;=_?*+/^<>!|&'-]/y;

/** Where a piece of text lies, for messages: `file:line:column`, both counted from 1. */
export function locate(text: string, offset: number, file: string): string {
  const before = text.slice(0, offset);
  const line = before.split('\n').length;
  return `${file}:${line}:${offset - before.lastIndexOf('\n')}`;
}

/**
 * Cuts the text form into tokens; newlines are tokens, blanks and `//` comments are not.
 * @throws IR101 on a character or string that cannot be read
 */
export function lex(text: string, file: string): Token[] {
  const tokens: Token[] = [];
  let at = 0;
  const take = (pattern: RegExp): string | undefined => {
    pattern.lastIndex = at;
    return pattern.exec(text)?.[0];
  };
  const push = (kind: TokenKind, meaning: string, length: number): void => {
    tokens.push({ kind, text: meaning, start: at, stop: at + length });
    at += length;
  };
  while (at < text.length) {
    const blank = take(BLANK);
    if (blank) {
      at += blank.length;
      continue;
    }
    const sigil = text[at]!;
    if (sigil === '\n') push('newline', '\n', 1);
    else if (sigil === '%' || sigil === '@') {
      const quoted = take(SIGIL_STRING)?.slice(1);
      const name = quoted === undefined ? take(SIGIL_NAME)?.slice(1) : unquote(quoted, text, at, file);
      if (name === undefined) throw badText(text, at, file, `a name must follow ${sigil}`);
      push(sigil === '%' ? 'value' : 'graph', name, 1 + (quoted ?? name).length);
    } else if (sigil === '"') {
      const quoted = take(STRING);
      if (quoted === undefined) throw badText(text, at, file, 'a string has no end on its line');
      push('string', unquote(quoted, text, at, file), quoted.length);
    } else {
      lexPlain(take, push, () => badText(text, at, file, `unexpected character ${JSON.stringify(sigil)}`));
    }
  }
  tokens.push({ kind: 'end', text: '', start: at, stop: at });
  return tokens;
}

function lexPlain(
  take: (pattern: RegExp) => string | undefined,
  push: (kind: TokenKind, meaning: string, length: number) => void,
  fail: () => NpucError,
): void {
  for (const [kind, pattern] of PLAIN) {
    const found = take(pattern);
    if (found === undefined) continue;
    // A lone underscore is the mark for an absent input or output, not a word.
    const isAbsent = kind === 'word' && found === '_';
    push(isAbsent ? 'mark' : kind, kind === 'digest' ? found.slice(1) : found, found.length);
    return;
  }
  throw fail();
}

const PLAIN: readonly (readonly [TokenKind, RegExp])[] = [
  ['digest', DIGEST],
  ['number', NUMBER],
  ['word', WORD],
  ['mark', MARK],
];

function unquote(quoted: string, text: string, at: number, file: string): string {
  try {
    return JSON.parse(quoted) as string;
  } catch {
    throw badText(text, at, file, `${quoted} is not a JSON string`);
  }
}

/** The error for text that cannot be understood at an offset. */
export function badText(text: string, offset: number, file: string, message: string): NpucError {
  return new NpucError('IR101', { message, where: locate(text, offset, file) });
}

/** A name as the text form spells it after its sigil: bare when it can be, else a JSON string. */
export function quoteName(name: string): string {
  return /^[A-Za-z0-9_./]+$/.test(name) ? name : JSON.stringify(name);
}

/** A word such as an operator, an attribute or a domain: bare when it can be, else a JSON string. */
export function quoteWord(word: string): string {
  const isBare = /^[A-Za-z_][A-Za-z0-9_.]*$/.test(word) && word !== '_' && !/^inf\b/.test(word);
  return isBare ? word : JSON.stringify(word);
}

/** The name of a node whose line gives none: as Graph.emit makes it, so that most nodes need none. */
export function defaultNodeName(op: string, outputs: readonly ({ readonly name: string } | undefined)[]): string {
  const first = outputs.find((value) => value !== undefined);
  return first ? `${first.name}/${op}` : '';
}

import { Environment, Interpreter, parse, tokenize } from '@huggingface/jinja';
import { NpucError } from '../errors.ts';

/** One turn of a conversation; templates may read more keys than these. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
  readonly [key: string]: unknown;
}

export interface ChatOptions {
  /** Ends the prompt with the opening of the assistant's turn (default true). */
  readonly addGenerationPrompt?: boolean;
  /** The day that a template sees as today. Fixed unless given, so that the same messages give the same tokens every day. */
  readonly today?: Date;
  /** More variables for the template, such as `tools` or `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

// The date that Llama 3's template falls back to when it cannot ask for the time.
const FIXED_DAY = new Date(Date.UTC(2024, 6, 26));

/**
 * Renders a Jinja chat template as transformers does: blocks trimmed, `raise_exception`, `range` and `strftime_now` defined,
 * the special tokens (`bos_token`, `eos_token`, ...) as variables.
 * @throws IM133 the template cannot be parsed, or refuses the messages
 */
export function renderChatTemplate(
  template: string,
  messages: readonly ChatMessage[],
  specialTokens: Readonly<Record<string, string>>,
  options: ChatOptions = {},
): string {
  const today = options.today ?? FIXED_DAY;
  const variables: Record<string, unknown> = {
    true: true,
    false: false,
    none: null,
    True: true,
    False: false,
    None: null,
    range: countRange,
    raise_exception: (message: unknown) => {
      throw new Error(String(message));
    },
    strftime_now: (format: string) => formatDay(today, format),
    tools: null,
    documents: null,
    ...specialTokens,
    ...options.variables,
    messages,
    add_generation_prompt: options.addGenerationPrompt ?? true,
  };
  try {
    const environment = new Environment();
    for (const [name, value] of Object.entries(variables)) environment.set(name, value);
    const program = parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }));
    return String(new Interpreter(environment).run(program).value);
  } catch (cause) {
    throw new NpucError('IM133', {
      message: `the chat template does not take these messages: ${(cause as Error).message}`,
      hint: 'pass a raw prompt instead, or drop the roles that the template does not know',
      cause,
    });
  }
}

/** Why a text is no Jinja template; undefined when it is one. */
export function refuseChatTemplate(template: string): string | undefined {
  try {
    parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }));
    return undefined;
  } catch (cause) {
    return (cause as Error).message;
  }
}

const MAX_RANGE = 1_000_000;

function countRange(start: number, stop?: number, step = 1): number[] {
  const [from, to] = stop === undefined ? [0, start] : [start, stop];
  const count = Math.max(0, Math.ceil((to - from) / step));
  if (!(count <= MAX_RANGE)) throw new Error(`range() of ${count} numbers`);
  return Array.from({ length: count }, (_, i) => from + i * step);
}

const MONTHS = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
];

/** The directives of strftime that chat templates use, in English and UTC whatever the machine's locale is. */
function formatDay(day: Date, format: string): string {
  const two = (value: number): string => String(value).padStart(2, '0');
  return format.replace(/%[YmdbBHMS%]/g, (directive) => {
    if (directive === '%Y') return String(day.getUTCFullYear());
    if (directive === '%m') return two(day.getUTCMonth() + 1);
    if (directive === '%d') return two(day.getUTCDate());
    if (directive === '%b') return MONTHS[day.getUTCMonth()].slice(0, 3);
    if (directive === '%B') return MONTHS[day.getUTCMonth()];
    if (directive === '%H') return two(day.getUTCHours());
    if (directive === '%M') return two(day.getUTCMinutes());
    if (directive === '%S') return two(day.getUTCSeconds());
    return '%';
  });
}

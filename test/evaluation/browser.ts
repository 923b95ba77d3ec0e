import { existsSync } from 'node:fs';
import { type Browser, type BrowserContextOptions, chromium, type Page } from 'playwright-core';
import { expect } from 'vitest';

const PATH = '/usr/bin/chromium';

/** Whether the tests that look at pages can run: Debian's chromium is there. In CI its absence is a failure, never a skip. */
export const hasBrowser: boolean = (() => {
  if (existsSync(PATH)) return true;
  if (process.env.CI) throw new Error(`${PATH} is absent: in CI that is a failure`);
  console.warn(`SKIPPED: ${PATH} is absent, the report is not looked at in a browser (apt-get install chromium)`);
  return false;
})();

/** Starts the browser without a window, and without the traffic of its own that it makes when left alone. */
export async function launchBrowser(): Promise<Browser> {
  return await chromium.launch({
    executablePath: PATH,
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  });
}

/** A page and everything that it did which a report must not do. */
export interface WatchedPage {
  readonly page: Page;
  /** Requests beside the file itself, console messages, uncaught errors, dialogs. */
  readonly complaints: string[];
  close(): Promise<void>;
}

/** Opens a file, looks at it, and holds it to what every report must keep to: no request, no message, no error. */
export async function inspectPage(
  browser: Browser,
  url: string,
  options: BrowserContextOptions,
  inspect: (watched: WatchedPage) => Promise<void>,
): Promise<void> {
  const watched = await openWatched(browser, url, options);
  try {
    await inspect(watched);
    expect(watched.complaints).toEqual([]);
  } finally {
    await watched.close();
  }
}

/** Opens a file and watches what it does. */
async function openWatched(browser: Browser, url: string, options: BrowserContextOptions = {}): Promise<WatchedPage> {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const complaints: string[] = [];
  page.on('request', (request) => {
    if (request.url() !== url && request.url() !== 'data:,') complaints.push(`request ${request.url()}`);
  });
  page.on('console', (message) => complaints.push(`console ${message.type()} ${message.text()}`));
  page.on('pageerror', (error) => complaints.push(`error ${error.message}`));
  page.on('dialog', (dialog) => {
    complaints.push(`dialog ${dialog.message()}`);
    void dialog.dismiss();
  });
  await page.goto(url);
  return { page, complaints, close: () => context.close() };
}

/** Distinct colours of a PNG, and the share of its pixels that are not of the commonest one. */
export async function describePixels(browser: Browser, png: Buffer): Promise<{ colours: number; drawn: number }> {
  const page = await browser.newPage();
  try {
    // As text: the tests are not compiled with the browser's types.
    return await page.evaluate<{ colours: number; drawn: number }>(`(async () => {
      const image = new Image();
      image.src = 'data:image/png;base64,${png.toString('base64')}';
      await image.decode();
      const context = new OffscreenCanvas(image.width, image.height).getContext('2d');
      context.drawImage(image, 0, 0);
      const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
      const counts = new Map();
      for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
      return { colours: counts.size, drawn: 1 - Math.max(...counts.values()) / pixels.length };
    })()`);
  } finally {
    await page.close();
  }
}

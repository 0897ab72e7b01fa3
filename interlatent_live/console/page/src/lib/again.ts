// What is asked again and again while a view is open: one question at a time, none after the view.

/**
 * Call `load` now and `everyMs` after each answer; the answer ends that. A view that stands still
 * (`waits`) is not asked for, except the first time.
 */
export function again(
  everyMs: number,
  load: (signal: AbortSignal) => Promise<void>,
  report: (error: unknown) => void,
  waits: () => boolean = () => false,
): () => void {
  const ended = new AbortController();
  let timer = 0;
  let once = false;
  async function turn(): Promise<void> {
    try {
      if (!once || !waits()) {
        await load(ended.signal);
        once = true;
        report(null);
      }
    } catch (error) {
      if (!ended.signal.aborted) report(error);
    }
    if (!ended.signal.aborted) timer = window.setTimeout(() => void turn(), everyMs);
  }
  void turn();
  return () => {
    ended.abort();
    window.clearTimeout(timer);
  };
}
